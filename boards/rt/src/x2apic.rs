//! The local APIC in x2APIC mode, reached through MSRs (Intel SDM volume 3,
//! chapter "Advanced Programmable Interrupt Controller", "x2APIC register address
//! space").
#![allow(unsafe_code)]

use core::arch::x86_64::__cpuid;
use x86_64::registers::model_specific::Msr;

/// IA32_APIC_BASE: global enable and mode.
const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;

/// The APIC's id, 32 bits.
const ID: u32 = 0x802;
/// Task priority: 0 lets every vector through.
const TASK_PRIORITY: u32 = 0x808;
/// End of interrupt.
pub(crate) const EOI: u32 = 0x80b;
/// Spurious vector, and the software enable.
const SPURIOUS: u32 = 0x80f;
const SPURIOUS_ENABLE: u64 = 1 << 8;
/// The timer's local vector.
const LVT_TIMER: u32 = 0x832;
const LVT_MASKED: u64 = 1 << 16;
const LVT_PERIODIC: u64 = 1 << 17;
const TIMER_INITIAL: u32 = 0x838;
const TIMER_CURRENT: u32 = 0x839;
const TIMER_DIVIDE: u32 = 0x83e;
/// Divide configuration: count at the full input rate.
const DIVIDE_BY_1: u64 = 0b1011;

/// The vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// The CPU has no x2APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the CPU has no x2APIC (CPUID 1, ECX bit 21)")]
pub struct NoX2Apic;

/// The local APIC of this CPU, in x2APIC mode.
#[derive(Debug)]
pub struct X2Apic(());

impl X2Apic {
    /// Turns the local APIC on, in x2APIC mode, with every priority let through
    /// and the timer stopped.
    pub fn enable() -> Result<Self, NoX2Apic> {
        if __cpuid(1).ecx >> 21 & 1 == 0 {
            return Err(NoX2Apic);
        }
        let base = read(APIC_BASE);
        write(APIC_BASE, base | APIC_BASE_ENABLE | APIC_BASE_X2APIC);
        write(SPURIOUS, SPURIOUS_ENABLE | u64::from(SPURIOUS_VECTOR));
        write(TASK_PRIORITY, 0);
        let apic = Self(());
        apic.stop_timer();
        Ok(apic)
    }

    /// The APIC's id: what a message-signalled interrupt is addressed to.
    pub fn id(&self) -> u32 {
        read(ID) as u32
    }

    /// Sends `vector` each time `count` timer clocks have passed. A count of 0
    /// stops the timer.
    pub fn start_periodic_timer(&self, vector: u8, count: u32) {
        self.start_timer(LVT_PERIODIC | u64::from(vector), count);
    }

    /// Sends `vector` once, when `count` timer clocks have passed. A count of 0
    /// stops the timer.
    pub fn start_one_shot_timer(&self, vector: u8, count: u32) {
        self.start_timer(u64::from(vector), count);
    }

    /// Counts down from `count` without sending anything; [`X2Apic::timer_count`]
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
        read(TIMER_CURRENT) as u32
    }

    fn start_timer(&self, lvt: u64, count: u32) {
        write(TIMER_DIVIDE, DIVIDE_BY_1);
        write(LVT_TIMER, lvt);
        // The count last: writing it starts the timer.
        write(TIMER_INITIAL, u64::from(count));
    }
}

fn read(register: u32) -> u64 {
    // SAFETY: each constant above names an MSR that `X2Apic::enable` found present
    // and reading it changes nothing.
    unsafe { Msr::new(register).read() }
}

fn write(register: u32, value: u64) {
    // SAFETY: the values written above only route and time interrupts, and what an
    // interrupt may do is decided by the interrupt table.
    unsafe { Msr::new(register).write(value) }
}
