//! The interrupt table.
//!
//! A vector from 32 on does one thing: it sets its bit in a set of pending
//! vectors and tells the local APIC that it was taken. Whoever runs the main loop
//! takes the set when it suits it, so no other code ever runs in the middle of
//! another. Exceptions are fatal.
#![allow(unsafe_code)]

use crate::segments::StackSlot;
use crate::{apic, cpu, exceptions};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

/// The first vector that is not an exception.
pub const FIRST_EXTERNAL: u8 = 32;

const VECTORS: usize = 256;

/// The vectors taken since the main loop last looked, one bit each. Another CPU adds its
/// own, which tell the boot CPU nothing.
static PENDING: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// Whether `vector` is in the set.
    pub const fn contains(&self, vector: u8) -> bool {
        self.0[vector as usize / 64] >> (vector % 64) & 1 == 1
    }

    /// Its vectors, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        self.0.into_iter().zip(0u32..).flat_map(|(word, index)| {
            core::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|rest| *rest != 0)
                .map(move |rest| (64 * index + rest.trailing_zeros()) as u8)
        })
    }

    /// Whether the set has no vector.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// Takes the vectors that came since the last call. May be called at any time.
fn take_pending() -> VectorSet {
    VectorSet(core::array::from_fn(|i| {
        PENDING[i].swap(0, Ordering::AcqRel)
    }))
}

/// Lets in what is waiting at the local APIC, and takes what came. Call it with
/// interrupts disabled; they are disabled again on return.
pub fn poll() -> VectorSet {
    cpu::accept_interrupts();
    take_pending()
}

/// Waits until at least one vector has come, and takes what came. Call it with
/// interrupts disabled; they are disabled again on return.
pub fn wait() -> VectorSet {
    loop {
        let pending = take_pending();
        if !pending.is_empty() {
            return pending;
        }
        // A vector that comes here is not slept through: interrupts are disabled
        // until the very instruction that halts.
        cpu::halt_until_interrupt();
    }
}

/// An interrupt gate, AMD APM volume 2, section 4.8.4 "Gate Descriptors" (64-bit).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    /// Bits 15:0 of the handler's address.
    offset_low: u16,
    /// Code segment selector.
    selector: u16,
    /// Stack table slot in bits 2:0; 0 keeps the stack.
    stack: u8,
    /// Present, privilege level 0, type 0xE: a 64-bit gate that disables interrupts.
    kind: u8,
    /// Bits 31:16.
    offset_middle: u16,
    /// Bits 63:32.
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    fn new(vector: u8, selector: u16) -> Self {
        let offset = &raw const interrupt_stubs as u64 + u64::from(vector) * STUB_BYTES;
        Self {
            offset_low: offset as u16,
            selector,
            stack: stack_slot(vector) as u8,
            kind: 0x8e,
            offset_middle: (offset >> 16) as u16,
            offset_high: (offset >> 32) as u32,
            reserved: 0,
        }
    }
}

fn stack_slot(vector: u8) -> StackSlot {
    match vector {
        2 => StackSlot::Nmi,
        8 => StackSlot::DoubleFault,
        18 => StackSlot::MachineCheck,
        ..FIRST_EXTERNAL => StackSlot::Exception,
        FIRST_EXTERNAL.. => StackSlot::Interrupt,
    }
}

static TABLE: Once<[Gate; VECTORS]> = Once::new();

/// Loads the table. The segments are loaded already.
pub(crate) fn load() {
    use x86_64::instructions::segmentation::{CS, Segment};
    let selector = CS::get_reg().0;
    let table = TABLE.call_once(|| core::array::from_fn(|i| Gate::new(i as u8, selector)));
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(table) - 1) as u16,
        base: VirtAddr::from_ptr(table),
    };
    // SAFETY: the table is static and every gate in it is complete: a stub that
    // exists, the code segment in use, and a stack that is mapped.
    unsafe { lidt(&pointer) };
}

/// Bytes from one stub to the next.
const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    /// The first of 256 stubs.
    static interrupt_stubs: u8;
}

// Each stub leaves the same frame behind: an error code (0 where the CPU pushes
// none) and the vector. The `push` sign-extends the vector; only its low byte is
// ever looked at.
//
// The path of an external vector uses neither SSE registers nor memory below the
// interrupted stack, so there is nothing more to save. External vectors come only
// after `LocalApic::enable`, which says how an interrupt is ended. For a spurious
// vector, which is not in service, ending does nothing, as nothing else is in
// service at that moment.
global_asm!(
    ".pushsection .text.interrupts, \"ax\", @progbits",
    ".balign 16",
    ".global interrupt_stubs",
    "interrupt_stubs:",
    ".set interrupt_vector, 0",
    ".rept 256",
    ".balign 16",
    // The exceptions for which the CPU pushes an error code.
    ".if ((interrupt_vector >= 32) || !(({with_error_code} >> interrupt_vector) & 1))",
    "push 0",
    ".endif",
    ".byte 0x6a, interrupt_vector", // push imm8
    "jmp interrupt_common",
    ".set interrupt_vector, interrupt_vector + 1",
    ".endr",
    "",
    "interrupt_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "movzx eax, byte ptr [rsp + 24]",
    "cmp eax, {first_external}",
    "jb 2f",
    "lock bts qword ptr [rip + {pending}], rax",
    "mov rcx, qword ptr [rip + {eoi_address}]",
    "test rcx, rcx",
    "jz 3f",
    "mov dword ptr [rcx], 0",
    "jmp 4f",
    "3:",
    "mov ecx, {eoi_msr}",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "4:",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "",
    // An exception: the registers in the order of `exceptions::Registers`.
    "2:",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rdi, rsp",
    "cld",
    "and rsp, -16",
    "call {exception}",
    "ud2",
    ".popsection",
    with_error_code = const exceptions::WITH_ERROR_CODE,
    first_external = const FIRST_EXTERNAL,
    eoi_address = sym apic::END_OF_INTERRUPT,
    eoi_msr = const apic::END_OF_INTERRUPT_MSR,
    pending = sym PENDING,
    exception = sym exceptions::stop,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_exactly_the_vectors_put_in() {
        let set = VectorSet([0, 1 << 3, 0, 1 << 63]);
        let members: Vec<u8> = set.iter().collect();
        assert_eq!(members, [67, 255]);
        assert!(!set.is_empty());
    }
}
