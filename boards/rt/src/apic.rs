//! The local APIC and its timer (Intel SDM volume 3, chapter "Advanced
//! Programmable Interrupt Controller").
//!
//! The registers are the same in both modes; they are reached through memory in
//! xAPIC mode and through MSRs in x2APIC mode.
#![allow(unsafe_code)]

use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::registers::model_specific::Msr;

/// IA32_APIC_BASE: place, global enable and mode.
const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;

/// Where the registers are in xAPIC mode. Firmware does not move them.
const XAPIC_BASE: u64 = 0xfee0_0000;
/// Register `n` is the MSR `X2APIC_BASE + n`, or 4 bytes at `XAPIC_BASE + 16 n`.
const X2APIC_BASE: u32 = 0x800;

const SPURIOUS_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
/// Interrupt command: INIT, asserted.
const COMMAND_INIT: u32 = 5 << 8 | 1 << 14;
/// Interrupt command: start-up.
const COMMAND_STARTUP: u32 = 6 << 8 | 1 << 14;
/// Interrupt command: a fixed interrupt.
const COMMAND_FIXED: u32 = 1 << 14;
/// Divide configuration: count at the full input rate.
const DIVIDE_BY_1: u32 = 0b1011;

/// The vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// A register's number.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Register {
    /// This APIC's id: all 32 bits in x2APIC mode, the top 8 in xAPIC mode.
    Id = 0x02,
    /// 0 lets every vector through.
    TaskPriority = 0x08,
    /// A write ends the interrupt in service.
    EndOfInterrupt = 0x0b,
    /// The spurious vector, and the software enable.
    Spurious = 0x0f,
    /// Sends an interrupt: vector, kind and, in x2APIC mode, destination.
    Command = 0x30,
    /// The destination of the command, in xAPIC mode.
    CommandHigh = 0x31,
    /// The timer's vector, mask and mode.
    LvtTimer = 0x32,
    /// A write starts the timer.
    TimerInitial = 0x38,
    /// Counts down.
    TimerCurrent = 0x39,
    /// The timer's divider.
    TimerDivide = 0x3e,
}

/// The MSR by which the interrupt stubs end an interrupt in x2APIC mode.
pub(crate) const END_OF_INTERRUPT_MSR: u32 = X2APIC_BASE + Register::EndOfInterrupt as u32;

/// The address by which the interrupt stubs end an interrupt, 0 in x2APIC mode.
pub(crate) static END_OF_INTERRUPT: AtomicU64 = AtomicU64::new(0);

/// How the registers are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Through memory. QEMU cannot access the timer's registers through MSRs while
    /// it counts instructions (`-icount`).
    XApic,
    /// Through MSRs.
    X2Apic,
}

/// The CPU has no x2APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the CPU has no x2APIC (CPUID 1, ECX bit 21)")]
pub struct NoX2Apic;

/// The local APIC of this CPU, turned on.
#[derive(Debug)]
pub struct LocalApic {
    mode: Mode,
}

impl LocalApic {
    /// Turns the local APIC on with every priority let through and the timer
    /// stopped. An APIC that firmware left in x2APIC mode stays in it, as there is
    /// no direct way back.
    pub fn enable(mode: Mode) -> Result<Self, NoX2Apic> {
        // SAFETY: every CPU with long mode has this MSR.
        let base = unsafe { Msr::new(APIC_BASE).read() };
        let mode = match base & APIC_BASE_X2APIC {
            0 => mode,
            _ => Mode::X2Apic,
        };
        let mode_bit = match mode {
            Mode::XApic => 0,
            Mode::X2Apic if __cpuid(1).ecx >> 21 & 1 == 1 => APIC_BASE_X2APIC,
            Mode::X2Apic => return Err(NoX2Apic),
        };
        // SAFETY: the mode exists, and what an interrupt may do is decided by the
        // interrupt table.
        unsafe { Msr::new(APIC_BASE).write(base | APIC_BASE_ENABLE | mode_bit) };

        let apic = Self { mode };
        let end_of_interrupt = match mode {
            Mode::XApic => xapic_address(Register::EndOfInterrupt),
            Mode::X2Apic => 0,
        };
        // Before the first interrupt can come.
        END_OF_INTERRUPT.store(end_of_interrupt, Ordering::SeqCst);
        apic.write(
            Register::Spurious,
            SPURIOUS_ENABLE | u32::from(SPURIOUS_VECTOR),
        );
        apic.write(Register::TaskPriority, 0);
        apic.stop_timer();
        Ok(apic)
    }

    /// The APIC's id: what a message-signalled interrupt is addressed to.
    pub fn id(&self) -> u32 {
        match self.mode {
            Mode::XApic => self.read(Register::Id) >> 24,
            Mode::X2Apic => self.read(Register::Id),
        }
    }

    /// Interrupts the CPU with the APIC id `id` with `vector`.
    pub fn send_interrupt(&self, id: u32, vector: u8) {
        self.send(id, COMMAND_FIXED | u32::from(vector));
    }

    /// Resets the CPU with the APIC id `id`, which then waits for a start-up.
    pub fn send_init(&self, id: u32) {
        self.send(id, COMMAND_INIT);
    }

    /// Has the CPU with the APIC id `id` start in real mode at a 4 KiB `page`.
    pub fn send_startup(&self, id: u32, page: u8) {
        self.send(id, COMMAND_STARTUP | u32::from(page));
    }

    fn send(&self, id: u32, command: u32) {
        match self.mode {
            Mode::XApic => {
                self.write(Register::CommandHigh, id << 24);
                // The low half last: writing it sends.
                self.write(Register::Command, command);
            }
            Mode::X2Apic => {
                let command = u64::from(id) << 32 | u64::from(command);
                // SAFETY: the APIC is on and in this mode, so the MSR exists. Whoever
                // can make a `LocalApic` decides over the machine's CPUs.
                unsafe { x2apic_msr(Register::Command).write(command) };
            }
        }
    }

    /// Sends `vector` each time `count` timer clocks have passed. A count of 0
    /// stops the timer.
    pub fn start_periodic_timer(&self, vector: u8, count: u32) {
        self.start_timer(LVT_PERIODIC | u32::from(vector), count);
    }

    /// Sends `vector` once, when `count` timer clocks have passed. A count of 0
    /// stops the timer.
    pub fn start_one_shot_timer(&self, vector: u8, count: u32) {
        self.start_timer(u32::from(vector), count);
    }

    /// Counts down from `count` without sending anything; [`LocalApic::timer_count`]
    /// says where it is.
    pub fn start_silent_timer(&self, count: u32) {
        self.start_timer(LVT_MASKED, count);
    }

    /// Stops the timer.
    pub fn stop_timer(&self) {
        self.start_timer(LVT_MASKED, 0);
    }

    /// The timer clocks left until the timer ends or begins anew.
    pub fn timer_count(&self) -> u32 {
        self.read(Register::TimerCurrent)
    }

    fn start_timer(&self, lvt: u32, count: u32) {
        self.write(Register::TimerDivide, DIVIDE_BY_1);
        self.write(Register::LvtTimer, lvt);
        // The count last: writing it starts the timer.
        self.write(Register::TimerInitial, count);
    }

    fn read(&self, register: Register) -> u32 {
        match self.mode {
            // SAFETY: the APIC is on and in this mode, so its registers are here;
            // the address is identity mapped, and reading these changes nothing.
            Mode::XApic => unsafe { (xapic_address(register) as *const u32).read_volatile() },
            // SAFETY: the APIC is on and in this mode, so the MSR exists.
            Mode::X2Apic => unsafe { x2apic_msr(register).read() as u32 },
        }
    }

    fn write(&self, register: Register, value: u32) {
        match self.mode {
            // SAFETY: as in `read`; the values written only route and time
            // interrupts, and what one may do is decided by the interrupt table.
            Mode::XApic => unsafe {
                (xapic_address(register) as *mut u32).write_volatile(value);
            },
            // SAFETY: as above.
            Mode::X2Apic => unsafe { x2apic_msr(register).write(u64::from(value)) },
        }
    }
}

const fn xapic_address(register: Register) -> u64 {
    XAPIC_BASE + 16 * register as u64
}

const fn x2apic_msr(register: Register) -> Msr {
    Msr::new(X2APIC_BASE + register as u32)
}
