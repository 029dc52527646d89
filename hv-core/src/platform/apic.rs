//! A local APIC in x2APIC mode, for the one CPU of a guest, with id 0.
//!
//! AMD64 Architecture Programmer's Manual volume 2, chapter 16, section 16.11
//! (x2APIC). There is no memory-mapped interface and no timer: the timer's
//! registers keep what is written, and the count reads 0.

use super::msr::Refused;
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
const VERSION: u64 = 0x0005_0014;
/// SVR: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// Local vectors: masked.
const LVT_MASKED: u32 = 1 << 16;
/// The first MSR of the local vectors: timer, thermal, performance, LINT0, LINT1,
/// error.
const FIRST_LVT: u32 = 0x832;
/// Vectors below this are exceptions; the APIC never delivers them.
const FIRST_VECTOR: u8 = 16;

/// A message signalled interrupt: what the function writes and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Where to; an interrupt if it is FEEx_xxxxh.
    pub address: u64,
    /// What: vector and delivery mode.
    pub data: u32,
}

/// The state of the APIC. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ApicState {
    base: u64,
    requested: [u64; 4],
    in_service: [u64; 4],
    icr: u64,
    tpr: u32,
    svr: u32,
    lvt: [u32; 6],
    timer_initial: u32,
    timer_divide: u32,
}

/// The APIC.
pub struct Apic(ApicState);

impl Default for Apic {
    /// As after reset: enabled in the mode without MSRs, software disabled.
    fn default() -> Self {
        Self(ApicState {
            base: BASE_ADDRESS | BASE_ENABLE | BASE_BSP,
            requested: [0; 4],
            in_service: [0; 4],
            icr: 0,
            tpr: 0,
            svr: 0xff,
            lvt: [LVT_MASKED; 6],
            timer_initial: 0,
            timer_divide: 0,
        })
    }
}

impl Apic {
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
            *self = Self::default();
        }
        self.0.base = BASE_ADDRESS | BASE_BSP | mode;
        Ok(())
    }

    /// Reads an x2APIC MSR, 800h to 8FFh.
    pub fn read(&self, msr: u32) -> Result<u64, Refused> {
        self.require_x2apic()?;
        let word = |words: &[u64; 4], first: u32| {
            let index = (msr - first) as usize;
            words[index / 2] >> (32 * (index % 2)) & 0xffff_ffff
        };
        Ok(match msr {
            0x802 => 0,
            0x803 => VERSION,
            0x808 => u64::from(self.0.tpr),
            0x80a => u64::from(self.processor_priority()),
            // Logical id: cluster 0, the first CPU in it.
            0x80d => 1,
            0x80f => u64::from(self.0.svr),
            0x810..=0x817 => word(&self.0.in_service, 0x810),
            // Everything delivered here is edge triggered.
            0x818..=0x81f => 0,
            0x820..=0x827 => word(&self.0.requested, 0x820),
            0x828 => 0,
            0x830 => self.0.icr,
            0x832..=0x837 => u64::from(self.0.lvt[(msr - FIRST_LVT) as usize]),
            0x838 => u64::from(self.0.timer_initial),
            0x839 => 0,
            0x83e => u64::from(self.0.timer_divide),
            _ => return Err(Refused),
        })
    }

    /// Writes an x2APIC MSR. On an error nothing changes.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Refused> {
        self.require_x2apic()?;
        let at_most = |limit: u32| match u32::try_from(value) {
            Ok(value) if value <= limit => Ok(value),
            _ => Err(Refused),
        };
        match msr {
            0x808 => self.0.tpr = at_most(0xff)?,
            0x80b if value == 0 => self.end_of_interrupt(),
            0x80f => self.0.svr = at_most(0x1ff)?,
            0x828 if value == 0 => {}
            0x830 => {
                self.0.icr = value;
                self.send(value);
            }
            0x832..=0x837 => {
                let lvt = &mut self.0.lvt[(msr - FIRST_LVT) as usize];
                *lvt = at_most(0x0007_ffff)?;
            }
            0x838 => self.0.timer_initial = at_most(u32::MAX)?,
            0x83e => self.0.timer_divide = at_most(0xb)?,
            0x83f => {
                let vector = at_most(0xff)?;
                self.request(vector as u8);
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// A message signalled interrupt arrives. It is dropped unless it is a fixed
    /// or lowest-priority interrupt for this CPU.
    pub fn deliver(&mut self, msi: Msi) {
        let destination = msi.address >> 12 & 0xff;
        let logical = msi.address & 1 << 2 != 0;
        let is_ours = destination == 0xff || destination == u64::from(logical);
        let delivery = msi.data >> 8 & 7;
        if msi.address >> 20 == 0xfee && is_ours && delivery <= 1 {
            self.request(msi.data as u8);
        }
    }

    /// The vector that the CPU would be interrupted with if it could be.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = highest(&self.0.requested)?;
        let enabled = self.0.svr & SVR_ENABLE != 0 && self.0.base & BASE_ENABLE != 0;
        (enabled && u32::from(vector >> 4) > self.processor_priority() >> 4).then_some(vector)
    }

    /// The CPU takes the interrupt of `vector`, which [`Apic::deliverable`] named.
    pub fn accept(&mut self, vector: u8) {
        clear(&mut self.0.requested, vector);
        set(&mut self.0.in_service, vector);
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
        self.0
    }

    /// An APIC in a state from outside, unless it is impossible.
    pub fn restored(state: &ApicState) -> Option<Self> {
        let base = state.base & !(BASE_ENABLE | BASE_X2APIC) == BASE_ADDRESS | BASE_BSP;
        let mode = state.base & (BASE_ENABLE | BASE_X2APIC) != BASE_X2APIC;
        let exceptions = (state.requested[0] | state.in_service[0]) & 0xffff == 0;
        let registers = state.tpr <= 0xff && state.svr <= 0x1ff;
        (base && mode && exceptions && registers).then_some(Self(*state))
    }

    fn require_x2apic(&self) -> Result<(), Refused> {
        let on = self.0.base & BASE_X2APIC != 0;
        on.then_some(()).ok_or(Refused)
    }

    fn request(&mut self, vector: u8) {
        if vector >= FIRST_VECTOR {
            set(&mut self.0.requested, vector);
        }
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = highest(&self.0.in_service) {
            clear(&mut self.0.in_service, vector);
        }
    }

    /// An interprocessor interrupt: only those that reach this CPU do anything.
    fn send(&mut self, icr: u64) {
        let (delivery, shorthand, destination) = (icr >> 8 & 7, icr >> 18 & 3, icr >> 32);
        let logical = icr & 1 << 11 != 0;
        let is_ours = match shorthand {
            0 => destination == 0xffff_ffff || destination == u64::from(logical),
            1 | 2 => true,
            _ => false,
        };
        if is_ours && delivery == 0 {
            self.request(icr as u8);
        }
    }

    /// The higher of the task's priority and that of the interrupt in service.
    fn processor_priority(&self) -> u32 {
        let in_service = u32::from(highest(&self.0.in_service).unwrap_or(0));
        if self.0.tpr >> 4 >= in_service >> 4 {
            self.0.tpr
        } else {
            in_service & 0xf0
        }
    }
}

fn highest(words: &[u64; 4]) -> Option<u8> {
    let index = words.iter().rposition(|word| *word != 0)?;
    let bit = 63 - words[index].leading_zeros();
    Some((index as u32 * 64 + bit) as u8)
}

fn set(words: &mut [u64; 4], vector: u8) {
    words[usize::from(vector / 64)] |= 1 << (vector % 64);
}

fn clear(words: &mut [u64; 4], vector: u8) {
    words[usize::from(vector / 64)] &= !(1 << (vector % 64));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Apic {
        let mut apic = Apic::default();
        apic.set_base(apic.base() | BASE_X2APIC).unwrap();
        apic.write(0x80f, 0x1ff).unwrap();
        apic
    }

    fn msi(vector: u32) -> Msi {
        Msi {
            address: 0xfee0_0000,
            data: vector,
        }
    }

    #[test]
    fn the_registers_need_x2apic_mode() {
        let mut apic = Apic::default();
        assert_eq!(apic.read(0x802), Err(Refused));
        assert_eq!(apic.write(0x808, 0), Err(Refused));
        assert_eq!(apic.set_base(BASE_ADDRESS | BASE_X2APIC), Err(Refused));
        apic = enabled();
        assert_eq!(apic.read(0x803), Ok(VERSION));
        assert_eq!(apic.set_base(BASE_ADDRESS | BASE_ENABLE), Err(Refused));
    }

    #[test]
    fn a_higher_class_interrupts_a_lower_one_and_not_the_reverse() {
        let mut apic = enabled();
        apic.deliver(msi(0x41));
        assert_eq!(apic.deliverable(), Some(0x41));
        apic.accept(0x41);
        apic.deliver(msi(0x4f));
        assert_eq!(apic.deliverable(), None, "same class");
        apic.deliver(msi(0x51));
        assert_eq!(apic.deliverable(), Some(0x51));
        apic.accept(0x51);
        apic.write(0x80b, 0).unwrap();
        assert_eq!(apic.deliverable(), None, "0x41 is still in service");
        apic.write(0x80b, 0).unwrap();
        assert_eq!(apic.deliverable(), Some(0x4f));
        apic.write(0x808, 0x40).unwrap();
        assert_eq!(apic.deliverable(), None, "task priority");
    }

    #[test]
    fn messages_for_others_and_exception_vectors_are_dropped() {
        let mut apic = enabled();
        for (address, data) in [
            (0xfee0_1000, 0x41),
            (0xfed0_0000, 0x41),
            (0xfee0_0000, 0x8),
            (0xfee0_0000, 0x441),
        ] {
            apic.deliver(Msi { address, data });
        }
        assert_eq!(apic.deliverable(), None);
    }

    #[test]
    fn an_interrupt_to_oneself_arrives() {
        let mut apic = enabled();
        apic.write(0x83f, 0x33).unwrap();
        assert_eq!(apic.deliverable(), Some(0x33));
        apic.accept(0x33);
        apic.write(0x80b, 0).unwrap();
        apic.write(0x830, 1 << 18 | 0x34).unwrap();
        assert_eq!(apic.read(0x821), Ok(1 << (0x34 - 32)));
    }

    #[test]
    fn impossible_states_are_refused() {
        let good = enabled().save();
        assert!(Apic::restored(&good).is_some());
        let mut bad = good;
        bad.requested[0] = 1 << 3;
        assert!(Apic::restored(&bad).is_none());
        let mut bad = good;
        bad.base = 0;
        assert!(Apic::restored(&bad).is_none());
    }
}
