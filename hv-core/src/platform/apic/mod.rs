//! A local APIC.
//!
//! AMD64 Architecture Programmer's Manual volume 2, chapter 16: registers in memory
//! at FEE0_0000h (section 16.3), or MSRs in x2APIC mode (section 16.11). A register
//! has the same number in both: bits 11:4 of its address, or its MSR less 800h.
//! Logical destinations follow the flat model; the destination format is fixed.
//!
//! ```text
//!   message -> whom (platform) -> request -> deliverable? -> accept -> in service
//!   register file (here)  timer     vectors: the sets         -> end of interrupt
//! ```

mod message;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use message::{ApicIdTooLarge, Delivery, Destination, Message, Msi, Request};
pub use timer::TimerState;

use super::msr::Refused;
use super::time::Time;
use timer::{Tick, Timer};
use vectors::Vectors;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// APIC_BASE: this is the boot CPU.
const BASE_BSP: u64 = 1 << 8;
/// APIC_BASE: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// APIC_BASE: enabled.
const BASE_ENABLE: u64 = 1 << 11;
/// APIC_BASE: the address, fixed here.
const BASE_ADDRESS: u64 = 0xfee0_0000;
/// Version 14h with six local vectors.
const VERSION: u32 = 0x0005_0014;
/// SVR: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// Local vectors: masked.
const LVT_MASKED: u32 = 1 << 16;
/// Local vectors: the timer is periodic.
const LVT_PERIODIC: u32 = 1 << 17;
/// The bits of a local vector that can be written.
const LVT_WRITABLE: u32 = 0x0007_ffff;
/// Vectors below this are exceptions; the APIC never delivers them.
const FIRST_VECTOR: u8 = 16;

/// Where the registers are in memory.
pub const WINDOW: u64 = BASE_ADDRESS;
/// The first MSR of x2APIC mode.
pub(crate) const FIRST_MSR: u32 = 0x800;

/// Numbers of registers.
pub(crate) mod register {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TASK_PRIORITY: u32 = 0x08;
    pub(crate) const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub(crate) const END_OF_INTERRUPT: u32 = 0x0b;
    pub(crate) const LOGICAL_DESTINATION: u32 = 0x0d;
    pub(crate) const DESTINATION_FORMAT: u32 = 0x0e;
    pub(crate) const SPURIOUS: u32 = 0x0f;
    pub(crate) const IN_SERVICE: u32 = 0x10;
    pub(crate) const TRIGGER_MODE: u32 = 0x18;
    pub(crate) const REQUESTED: u32 = 0x20;
    pub(crate) const ERROR_STATUS: u32 = 0x28;
    pub(crate) const COMMAND: u32 = 0x30;
    pub(crate) const COMMAND_HIGH: u32 = 0x31;
    /// Timer, thermal, performance, LINT0, LINT1, error. Only the timer has a source here,
    /// and its interrupts are fixed: an entry that asks for NMIs is kept and raises none.
    pub(crate) const FIRST_LVT: u32 = 0x32;
    pub(crate) const LAST_LVT: u32 = 0x37;
    pub(crate) const TIMER_INITIAL: u32 = 0x38;
    pub(crate) const TIMER_CURRENT: u32 = 0x39;
    pub(crate) const TIMER_DIVIDE: u32 = 0x3e;
    pub(crate) const SELF: u32 = 0x3f;
}

/// The state of the APIC. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ApicState {
    registers: Registers,
    timer: TimerState,
}

/// All but the timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Registers {
    base: u64,
    requested: Vectors,
    in_service: Vectors,
    icr: u64,
    tpr: u32,
    svr: u32,
    lvt: [u32; 6],
    /// Used outside x2APIC mode only.
    logical_destination: u32,
    /// The number of the CPU.
    id: u32,
}

/// The APIC.
pub struct Apic(Registers, Timer);

impl Apic {
    /// The APIC of CPU `id`, below 255, as after reset: registers in memory, software
    /// disabled. CPU 0 is the boot CPU.
    pub fn new(id: u32) -> Self {
        let registers = Registers {
            base: BASE_ADDRESS | BASE_ENABLE | boot_cpu(id),
            requested: Vectors::default(),
            in_service: Vectors::default(),
            icr: 0,
            tpr: 0,
            svr: 0xff,
            lvt: [LVT_MASKED; 6],
            logical_destination: 0,
            id,
        };
        Self(registers, Timer::default())
    }

    /// What INIT does: all but id and mode is as after reset.
    pub fn init(&mut self) {
        let base = self.0.base;
        *self = Self::new(self.0.id);
        self.0.base = base;
    }

    /// The number of the CPU.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// MSR APIC_BASE.
    pub fn base(&self) -> u64 {
        self.0.base
    }

    /// Writes MSR APIC_BASE. The address cannot be moved, and x2APIC mode is left
    /// only by disabling the APIC.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        let allowed = BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | BASE_BSP;
        let (old, mode) = (self.0.base, value & (BASE_ENABLE | BASE_X2APIC));
        let leaves_x2apic = old & BASE_X2APIC != 0 && mode == BASE_ENABLE;
        let illegal = mode == BASE_X2APIC || leaves_x2apic;
        if value & !allowed != 0 || value & BASE_ADDRESS != BASE_ADDRESS || illegal {
            return Err(Refused);
        }
        if mode == 0 {
            *self = Self::new(self.0.id);
        }
        self.0.base = BASE_ADDRESS | boot_cpu(self.0.id) | mode;
        Ok(())
    }

    /// Whether the registers are in memory at [`WINDOW`].
    pub fn is_in_memory(&self) -> bool {
        self.0.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE
    }

    /// Reads an x2APIC MSR, 800h to 8FFh.
    pub fn read_msr(&self, msr: u32, now: Time) -> Result<u64, Refused> {
        self.require_x2apic()?;
        match msr.wrapping_sub(FIRST_MSR) {
            register::ID => Ok(self.0.id.into()),
            register::LOGICAL_DESTINATION => Ok(self.x2apic_logical_id().into()),
            register::COMMAND => Ok(self.0.icr),
            number => self.read(number, now).map(u64::from).ok_or(Refused),
        }
    }

    /// Writes an x2APIC MSR, and returns what it sends. On an error nothing changes.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: Time,
    ) -> Result<Option<Message>, Refused> {
        self.require_x2apic()?;
        let number = msr.wrapping_sub(FIRST_MSR);
        let limit = match number {
            register::COMMAND => {
                self.0.icr = value;
                return Ok(Message::from_command(value));
            }
            register::TASK_PRIORITY | register::SELF => 0xff,
            register::END_OF_INTERRUPT | register::ERROR_STATUS => 0,
            register::SPURIOUS => 0x1ff,
            register::FIRST_LVT..=register::LAST_LVT => LVT_WRITABLE,
            register::TIMER_INITIAL => u32::MAX,
            register::TIMER_DIVIDE => 0xb,
            _ => return Err(Refused),
        };
        let value = u32::try_from(value).map_err(|_| Refused)?;
        if value > limit {
            return Err(Refused);
        }
        self.write(number, value, now);
        Ok(None)
    }

    /// Reads a register in memory. Those that do not exist read as 0.
    pub fn read_memory(&self, offset: u64, now: Time) -> u32 {
        match (offset >> 4) as u32 {
            register::ID => self.0.id << 24,
            register::LOGICAL_DESTINATION => self.0.logical_destination,
            register::DESTINATION_FORMAT => u32::MAX,
            register::COMMAND => self.0.icr as u32,
            register::COMMAND_HIGH => (self.0.icr >> 32) as u32,
            number => self.read(number, now).unwrap_or(0),
        }
    }

    /// Writes a register in memory, and returns what it sends. Bits and registers that
    /// do not exist, or are read-only, are left alone.
    pub fn write_memory(&mut self, offset: u64, value: u32, now: Time) -> Option<Message> {
        match (offset >> 4) as u32 {
            register::LOGICAL_DESTINATION => self.0.logical_destination = value & 0xff << 24,
            register::COMMAND_HIGH => {
                self.0.icr = self.0.icr & 0xffff_ffff | u64::from(value & 0xff << 24) << 32;
            }
            register::COMMAND => {
                self.0.icr = self.0.icr >> 32 << 32 | u64::from(value);
                // The destination has eight bits here, with all ones for everyone.
                let destination = match self.0.icr >> 56 {
                    0xff => 0xffff_ffff,
                    destination => destination,
                };
                return Message::from_command(destination << 32 | u64::from(value));
            }
            register::SELF => {}
            number => self.write(number, value, now),
        }
        None
    }

    /// The timer catches up with `now`.
    pub fn advance(&mut self, now: Time) {
        let [lvt, ..] = self.0.lvt;
        let tick = self.1.advance(now, lvt & LVT_PERIODIC != 0);
        if tick == Tick::Expired && lvt & LVT_MASKED == 0 {
            self.request(lvt as u8);
        }
    }

    /// Whether `to`, sent by the CPU with the id `from` or by a device, names this CPU.
    pub fn is_addressed(&self, to: Destination, from: Option<u32>) -> bool {
        match to {
            Destination::Physical(id) => id == self.0.id,
            Destination::Logical(set) if self.is_in_memory() => {
                set & self.0.logical_destination >> 24 != 0
            }
            Destination::Logical(set) => {
                let own = self.x2apic_logical_id();
                set >> 16 == own >> 16 && set & own & 0xffff != 0
            }
            Destination::Itself => from == Some(self.0.id),
            Destination::All => true,
            Destination::Others => from != Some(self.0.id),
        }
    }

    /// An interrupt is requested. Vectors of exceptions are dropped.
    pub fn request(&mut self, vector: u8) {
        if vector >= FIRST_VECTOR {
            self.0.requested.insert(vector);
        }
    }

    /// The vector that the CPU would be interrupted with if it could be.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.0.requested.highest()?;
        let enabled = self.0.svr & SVR_ENABLE != 0 && self.0.base & BASE_ENABLE != 0;
        (enabled && u32::from(vector >> 4) > self.processor_priority() >> 4).then_some(vector)
    }

    /// The CPU takes the interrupt of `vector`, which [`Apic::deliverable`] named.
    pub fn accept(&mut self, vector: u8) {
        self.0.requested.remove(vector);
        self.0.in_service.insert(vector);
    }

    /// The task priority class, which the guest also has as CR8.
    pub fn task_priority_class(&self) -> u64 {
        u64::from(self.0.tpr >> 4)
    }

    /// The guest wrote CR8.
    pub fn set_task_priority_class(&mut self, class: u64) {
        if class != self.task_priority_class() {
            self.0.tpr = ((class & 0xf) << 4) as u32;
        }
    }

    /// The state of the APIC.
    pub fn save(&self) -> ApicState {
        ApicState {
            registers: self.0,
            timer: self.1.save(),
        }
    }

    /// An APIC in a state from outside, unless it is impossible.
    pub fn restored(state: &ApicState) -> Option<Self> {
        let registers = &state.registers;
        let fixed = BASE_ADDRESS | boot_cpu(registers.id);
        let base = registers.base & !(BASE_ENABLE | BASE_X2APIC) == fixed;
        let mode = registers.base & (BASE_ENABLE | BASE_X2APIC) != BASE_X2APIC;
        let exceptions =
            registers.requested.has_exceptions() || registers.in_service.has_exceptions();
        let values = registers.tpr <= 0xff
            && registers.svr <= 0x1ff
            && registers.lvt.iter().all(|lvt| *lvt <= LVT_WRITABLE)
            && registers.logical_destination << 8 == 0
            && registers.id < 255;
        let timer = Timer::restored(&state.timer)?;
        (base && mode && !exceptions && values).then_some(Self(*registers, timer))
    }

    /// Reads what is the same in both modes.
    fn read(&self, number: u32, now: Time) -> Option<u32> {
        let [timer_lvt, ..] = self.0.lvt;
        Some(match number {
            register::VERSION => VERSION,
            register::TASK_PRIORITY => self.0.tpr,
            register::PROCESSOR_PRIORITY => self.processor_priority(),
            register::SPURIOUS => self.0.svr,
            register::IN_SERVICE..register::TRIGGER_MODE => {
                self.0.in_service.register(number - register::IN_SERVICE)
            }
            // Everything delivered here is edge triggered.
            register::TRIGGER_MODE..register::REQUESTED => 0,
            register::REQUESTED..register::ERROR_STATUS => {
                self.0.requested.register(number - register::REQUESTED)
            }
            register::ERROR_STATUS => 0,
            register::FIRST_LVT..=register::LAST_LVT => {
                self.0.lvt[(number - register::FIRST_LVT) as usize]
            }
            register::TIMER_INITIAL => self.1.initial(),
            register::TIMER_CURRENT => self.1.current(now, timer_lvt & LVT_PERIODIC != 0),
            register::TIMER_DIVIDE => self.1.divide(),
            _ => return None,
        })
    }

    /// Writes what is the same in both modes.
    fn write(&mut self, number: u32, value: u32, now: Time) {
        match number {
            register::TASK_PRIORITY => self.0.tpr = value & 0xff,
            register::END_OF_INTERRUPT => self.end_of_interrupt(),
            register::SPURIOUS => self.0.svr = value & 0x1ff,
            register::FIRST_LVT..=register::LAST_LVT => {
                let index = (number - register::FIRST_LVT) as usize;
                self.0.lvt[index] = value & LVT_WRITABLE;
            }
            register::TIMER_INITIAL => self.1.start(value, now),
            register::TIMER_DIVIDE => self.1.set_divide(value),
            register::SELF => self.request(value as u8),
            _ => {}
        }
    }

    /// Sixteen CPUs make a cluster; the id has one bit for each of them.
    fn x2apic_logical_id(&self) -> u32 {
        self.0.id >> 4 << 16 | 1 << (self.0.id & 0xf)
    }

    fn require_x2apic(&self) -> Result<(), Refused> {
        let on = self.0.base & BASE_X2APIC != 0;
        on.then_some(()).ok_or(Refused)
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = self.0.in_service.highest() {
            self.0.in_service.remove(vector);
        }
    }

    /// The higher of the task's priority and that of the interrupt in service.
    fn processor_priority(&self) -> u32 {
        let in_service = u32::from(self.0.in_service.highest().unwrap_or(0));
        if self.0.tpr >> 4 >= in_service >> 4 {
            self.0.tpr
        } else {
            in_service & 0xf0
        }
    }
}

/// What APIC_BASE says of CPU `id`.
const fn boot_cpu(id: u32) -> u64 {
    if id == 0 { BASE_BSP } else { 0 }
}
