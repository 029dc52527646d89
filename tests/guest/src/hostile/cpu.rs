//! Instructions that fault, and accesses that nobody answers.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::registers::segmentation::{CS, Segment};
use x86_64::structures::DescriptorTablePointer;

/// #GP.
const GENERAL_PROTECTION: usize = 13;

/// An interrupt table of gates up to #GP, all but which are absent.
static mut TABLE: [u128; GENERAL_PROTECTION + 1] = [0; GENERAL_PROTECTION + 1];

/// While it exists, #GP skips the instruction and leaves a mark, and every other
/// exception is a triple fault. Interrupts are disabled all the time.
pub(super) struct Faults {
    before: DescriptorTablePointer,
}

impl Faults {
    pub(super) fn catch() -> Self {
        let before = sidt();
        let handler = skip as *const () as u64;
        // AMD APM volume 2, section 4.8.4: a present 64-bit interrupt gate.
        let low = handler & 0xffff
            | u64::from(CS::get_reg().0) << 16
            | 0x8e << 40
            | (handler >> 16 & 0xffff) << 48;
        let gate = u128::from(low) | u128::from(handler >> 32) << 64;
        let table = &raw mut TABLE;
        // SAFETY: this program has one CPU and no second user of the table, which is
        // static and whose one gate is complete.
        unsafe {
            (*table)[GENERAL_PROTECTION] = gate;
            lidt(&pointer(table as u64, size_of_val(&*table)));
        }
        Self { before }
    }

    /// Whether RDMSR faults.
    pub(super) fn read_msr(&self, number: u32) -> bool {
        let faulted: u64;
        // SAFETY: a fault goes on behind the instruction; reading has no effect.
        unsafe {
            asm!("xor r10d, r10d", "lea r11, [rip + 2f]", "rdmsr", "2:",
                in("ecx") number, out("eax") _, out("edx") _,
                out("r10") faulted, out("r11") _);
        }
        faulted != 0
    }

    /// Whether WRMSR faults. The register must be one that does no harm.
    pub(super) fn write_msr(&self, number: u32, value: u32) -> bool {
        let faulted: u64;
        // SAFETY: a fault goes on behind the instruction.
        unsafe {
            asm!("xor r10d, r10d", "lea r11, [rip + 2f]", "wrmsr", "2:",
                in("ecx") number, in("eax") value, in("edx") 0,
                out("r10") faulted, out("r11") _);
        }
        faulted != 0
    }

    /// Whether OUTSB faults.
    pub(super) fn write_string(&self, port: u16) -> bool {
        let faulted: u64;
        let byte = 0u8;
        // SAFETY: a fault goes on behind the instruction, which reads one byte.
        unsafe {
            asm!("xor r10d, r10d", "lea r11, [rip + 2f]", "outsb", "2:",
                in("dx") port, inout("rsi") &raw const byte => _,
                out("r10") faulted, out("r11") _);
        }
        faulted != 0
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // SAFETY: the table that was loaded before.
        unsafe { lidt(&self.before) };
    }
}

/// The handler: goes on at R11, with 1 in R10. The error code is on the stack.
#[unsafe(naked)]
extern "C" fn skip() {
    naked_asm!(
        "mov qword ptr [rsp + 8], r11",
        "mov r10d, 1",
        "add rsp, 8",
        "iretq"
    )
}

fn pointer(base: u64, bytes: usize) -> DescriptorTablePointer {
    DescriptorTablePointer {
        limit: bytes.saturating_sub(1) as u16,
        base: VirtAddr::new(base),
    }
}

/// An exception with no handler for it, nor for what follows.
pub(super) fn triple_fault() -> ! {
    // SAFETY: the program ends here.
    unsafe {
        lidt(&pointer(0, 0));
        asm!("ud2", options(noreturn));
    }
}

/// Reads 32 bits of a port that is not there.
pub(super) fn read_port(port: u16) -> u32 {
    // SAFETY: nothing is there.
    unsafe { Port::new(port).read() }
}

/// Writes 32 bits to a port that is not there.
pub(super) fn write_port(port: u16, value: u32) {
    // SAFETY: nothing is there.
    unsafe { Port::new(port).write(value) }
}

/// Writes configuration space as it is, whatever comes of it.
pub(super) fn write_config(requester_id: u16, offset: u16, value: u32) {
    let address = 1 << 31 | u32::from(requester_id) << 8 | u32::from(offset);
    // SAFETY: the device does no DMA: its bus mastering is off.
    unsafe {
        Port::new(0xcf8).write(address);
        Port::new(0xcfc).write(value);
    }
}
