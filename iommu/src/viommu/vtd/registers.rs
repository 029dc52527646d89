//! The register file: what an access reads and changes, and nothing else.
//!
//! Intel VT-d specification, chapter "Register Descriptions". All registers are
//! made of 32-bit words; an access of 64 bits is its two halves, low one first,
//! which is also the order that makes the triggers (all in the high half) come
//! last.

use super::capability::{FAULT_OFFSET, IOTLB_OFFSET, VERSION, capabilities, extended_capabilities};
use super::event::Event;
use super::faults::{FaultRegisters, RECORDS};
use crate::vtd::registers::{
    CAP, CCMD, ECAP, FECTL, FEUADDR, FSTS, GCMD, GSTS, ICS, ICS_WAIT_COMPLETE, IECTL, IEUADDR, IQA,
    IQH, IQT, IRTA, QUEUE_OFFSET, RTADDR, VER,
};
use crate::vtd::{AddressWidth, ExtendedCapabilities, FaultRecord, Global, InterruptTableAddress};

/// IVA: the pages of an invalidation by register; write only.
const IVA: usize = IOTLB_OFFSET as usize;
/// IOTLB: the command of an invalidation by register.
const IOTLB: usize = IVA + 8;
const FIRST_RECORD: usize = FAULT_OFFSET as usize;
const END_OF_RECORDS: usize = FIRST_RECORD + RECORDS * FaultRecord::SIZE;

/// The commands in GCMD that every unit has as lasting states.
const STATES: Global = Global::TRANSLATION.union(Global::QUEUED_INVALIDATION);
/// Those that say what becomes of interrupts, where the unit remaps any.
pub(super) const INTERRUPT_STATES: Global =
    Global::INTERRUPT_REMAPPING.union(Global::COMPATIBILITY_INTERRUPTS);

/// ICC of CCMD and IVT of IOTLB: set by software to start, cleared when done.
pub(super) const BUSY: u64 = 1 << 63;
/// CCMD: what software writes (ICC, CIRG, FM, SID, DID).
pub(super) const CCMD_WRITABLE: u64 = 0xe000_0003_ffff_ffff;
/// CCMD.CAIG, the granularity that was done.
pub(super) const CCMD_DONE: u64 = 3 << 59;
/// IOTLB: what software writes (IVT, IIRG, DR, DW, DID).
pub(super) const IOTLB_WRITABLE: u64 = 0xb003_ffff_0000_0000;
/// IOTLB.IAIG, the granularity that was done.
pub(super) const IOTLB_DONE: u64 = 3 << 57;
/// IVA: ADDR, IH and AM.
pub(super) const IVA_WRITABLE: u64 = !0xfff | 0x7f;
/// IQA: the base and QS. DW stays zero, since there is no scalable mode.
pub(super) const IQA_WRITABLE: u64 = !0xfff | 7;
/// RTADDR: the address. TTM stays zero for the same reason.
pub(super) const RTADDR_WRITABLE: u64 = !0xfff;

/// The registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    /// CAP and ECAP, fixed by the unit's configuration; not part of its state.
    pub(super) capabilities: u64,
    pub(super) extended: ExtendedCapabilities,
    /// The lasting states that software last asked for in GCMD.
    pub(super) wanted: Global,
    /// SRTP was written and not yet carried out.
    pub(super) root_wanted: bool,
    /// SIRTP was written and not yet carried out.
    pub(super) interrupt_table_wanted: bool,
    /// GSTS: what is in force.
    pub(super) status: Global,
    /// RTADDR.
    pub(super) rtaddr: u64,
    /// The root table in force: RTADDR at the time of SRTP.
    pub(super) root: u64,
    /// IRTA.
    pub(super) irta: u64,
    /// The interrupt remapping table in force: IRTA at the time of SIRTP.
    pub(super) interrupt_table: u64,
    /// CCMD.
    pub(super) ccmd: u64,
    /// IVA.
    pub(super) iva: u64,
    /// IOTLB.
    pub(super) iotlb: u64,
    /// IQH.
    pub(super) head: u64,
    /// IQT.
    pub(super) tail: u64,
    /// IQA.
    pub(super) queue: u64,
    /// ICS.IWC: a wait descriptor with its interrupt flag has completed.
    pub(super) wait_complete: bool,
    /// IECTL and its followers.
    pub(super) completion: Event,
    /// FSTS, FECTL and its followers, and the fault records.
    pub(super) faults: FaultRegisters,
}

impl Registers {
    /// As after reset.
    pub(super) fn new(width: AddressWidth, remaps_interrupts: bool) -> Self {
        Self {
            capabilities: capabilities(width).encode(),
            extended: extended_capabilities(remaps_interrupts),
            wanted: Global::empty(),
            root_wanted: false,
            interrupt_table_wanted: false,
            status: Global::empty(),
            rtaddr: 0,
            root: 0,
            irta: 0,
            interrupt_table: 0,
            ccmd: 0,
            iva: 0,
            iotlb: 0,
            head: 0,
            tail: 0,
            queue: 0,
            wait_complete: false,
            completion: Event::RESET,
            faults: FaultRegisters::RESET,
        }
    }

    /// An access of `width` bytes at `offset`; all ones unless it is an aligned
    /// one of 4 or 8.
    pub(super) fn read(&self, offset: u64, width: u8) -> u64 {
        match (aligned(offset, width), width) {
            (Some(offset), 4) => u64::from(self.read_word(offset)),
            (Some(offset), _) => {
                u64::from(self.read_word(offset + 4)) << 32 | u64::from(self.read_word(offset))
            }
            (None, _) => u64::MAX,
        }
    }

    /// An access of `width` bytes at `offset`; ignored unless it is an aligned
    /// one of 4 or 8.
    pub(super) fn write(&mut self, offset: u64, width: u8, value: u64) {
        if let Some(offset) = aligned(offset, width) {
            self.write_word(offset, value as u32);
            if width == 8 {
                self.write_word(offset + 4, (value >> 32) as u32);
            }
        }
    }

    fn read_word(&self, offset: usize) -> u32 {
        match offset {
            VER => VERSION,
            GSTS => self.status.bits(),
            FSTS => self.faults.read_status(),
            FECTL..=FEUADDR => self.faults.event.read((offset - FECTL) / 4),
            ICS if self.wait_complete => ICS_WAIT_COMPLETE,
            IECTL..=IEUADDR => self.completion.read((offset - IECTL) / 4),
            FIRST_RECORD..END_OF_RECORDS => self.faults.read_record(offset - FIRST_RECORD),
            _ => {
                let whole = match offset & !7 {
                    CAP => self.capabilities,
                    ECAP => self.extended.encode(),
                    RTADDR => self.rtaddr,
                    CCMD => self.ccmd,
                    IQH => self.head,
                    IQT => self.tail,
                    IQA => self.queue,
                    IRTA => self.irta,
                    IOTLB => self.iotlb,
                    _ => 0,
                };
                (whole >> (offset % 8 * 8)) as u32
            }
        }
    }

    fn write_word(&mut self, offset: usize, value: u32) {
        match offset {
            GCMD => self.command(Global::from_bits_truncate(value)),
            FSTS => self.faults.write_status(value),
            FECTL..=FEUADDR => self.faults.event.write((offset - FECTL) / 4, value),
            ICS => {
                if value & ICS_WAIT_COMPLETE != 0 {
                    self.wait_complete = false;
                    self.completion.withdraw();
                }
            }
            IECTL..=IEUADDR => self.completion.write((offset - IECTL) / 4, value),
            FIRST_RECORD..END_OF_RECORDS => self.faults.write_record(offset - FIRST_RECORD, value),
            _ => {
                let (register, writable) = match offset & !7 {
                    RTADDR => (&mut self.rtaddr, RTADDR_WRITABLE),
                    IQT => (&mut self.tail, QUEUE_OFFSET),
                    IQA => (&mut self.queue, IQA_WRITABLE),
                    IVA => (&mut self.iva, IVA_WRITABLE),
                    IRTA if self.remaps_interrupts() => {
                        (&mut self.irta, InterruptTableAddress::WRITABLE)
                    }
                    // A command that is being carried out cannot be changed.
                    CCMD if self.ccmd & BUSY == 0 => (&mut self.ccmd, CCMD_WRITABLE),
                    IOTLB if self.iotlb & BUSY == 0 => (&mut self.iotlb, IOTLB_WRITABLE),
                    _ => return,
                };
                let shift = offset % 8 * 8;
                let writable = writable & (u64::from(u32::MAX) << shift);
                *register = (*register & !writable) | (u64::from(value) << shift & writable);
            }
        }
    }

    fn command(&mut self, command: Global) {
        self.wanted = command & self.states();
        if command.contains(Global::ROOT_TABLE) {
            self.root_wanted = true;
            self.status.remove(Global::ROOT_TABLE);
        }
        if command.contains(Global::INTERRUPT_TABLE) && self.remaps_interrupts() {
            self.interrupt_table_wanted = true;
            self.status.remove(Global::INTERRUPT_TABLE);
        }
    }

    /// Whether the unit offers to remap interrupts.
    pub(super) fn remaps_interrupts(&self) -> bool {
        self.extended.interrupt_remapping
    }

    /// The commands in GCMD that this unit has as lasting states.
    pub(super) fn states(&self) -> Global {
        match self.remaps_interrupts() {
            true => STATES | INTERRUPT_STATES,
            false => STATES,
        }
    }

    /// All flags GSTS ever shows.
    pub(super) fn statuses(&self) -> Global {
        let tables = match self.remaps_interrupts() {
            true => Global::ROOT_TABLE | Global::INTERRUPT_TABLE,
            false => Global::ROOT_TABLE,
        };
        self.states() | tables
    }
}

fn aligned(offset: u64, width: u8) -> Option<usize> {
    let fits = matches!(width, 4 | 8) && offset.is_multiple_of(u64::from(width));
    // The registers lie in one page; the bound keeps sums of offsets small.
    usize::try_from(offset)
        .ok()
        .filter(|&offset| fits && offset < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vtd::Capabilities;

    fn registers() -> Registers {
        Registers::new(AddressWidth::Bits39, true)
    }

    #[test]
    fn capabilities_say_what_the_unit_is() {
        let registers = registers();
        let cap = Capabilities::decode(registers.read(CAP as u64, 8));
        assert_eq!(cap, capabilities(AddressWidth::Bits39));
        assert!(cap.caching_mode && cap.width_39 && !cap.width_48 && !cap.large_2m);
        assert_eq!(cap.domain_count(), 65536);
        let ecap = ExtendedCapabilities::decode(registers.read(ECAP as u64, 8));
        assert_eq!(ecap, extended_capabilities(true));
        assert_eq!(registers.read(VER as u64, 4), 0x10);
    }

    #[test]
    fn halves_and_whole_are_the_same_register() {
        let mut registers = registers();
        registers.write(RTADDR as u64, 8, 0x12_3456_7fff);
        assert_eq!(registers.read(RTADDR as u64, 4), 0x3456_7000);
        assert_eq!(registers.read(RTADDR as u64 + 4, 4), 0x12);
        registers.write(RTADDR as u64 + 4, 4, 0x77);
        assert_eq!(registers.read(RTADDR as u64, 8), 0x77_3456_7000);
    }

    #[test]
    fn accesses_of_other_widths_or_misaligned_do_nothing() {
        let mut registers = registers();
        for (offset, width) in [
            (0x20, 1),
            (0x20, 2),
            (0x22, 4),
            (0x24, 8),
            (0x20, 0),
            (1 << 40, 4),
        ] {
            registers.write(offset, width, u64::MAX);
            assert_eq!(registers.read(offset, width), u64::MAX);
        }
        assert_eq!(registers.rtaddr, 0);
    }

    #[test]
    fn read_only_and_reserved_registers_ignore_writes() {
        let mut written = registers();
        let untouched = registers();
        let skipped = [
            GCMD,
            RTADDR,
            CCMD,
            FECTL & !7,
            0x40,
            IQT,
            IQA,
            IECTL & !7,
            0xa8,
            IRTA,
            IOTLB,
        ];
        for offset in (0..0x1000usize).step_by(8) {
            if !skipped.contains(&offset) {
                written.write(offset as u64, 8, u64::MAX);
                assert_eq!(
                    written.read(offset as u64, 8),
                    untouched.read(offset as u64, 8),
                    "{offset:#x}"
                );
            }
        }
    }

    #[test]
    fn commands_change_the_status_only_when_carried_out() {
        let mut registers = registers();
        registers.status = Global::ROOT_TABLE;
        registers.write(GCMD as u64, 4, u64::from(u32::MAX));
        assert_eq!(registers.status, Global::empty());
        assert_eq!(registers.wanted, STATES | INTERRUPT_STATES);
        assert!(registers.root_wanted && registers.interrupt_table_wanted);
    }

    #[test]
    fn a_unit_without_interrupt_remapping_has_none_of_its_registers() {
        let mut registers = Registers::new(AddressWidth::Bits39, false);
        registers.write(IRTA as u64, 8, u64::MAX);
        registers.write(GCMD as u64, 4, u64::from(u32::MAX));
        assert_eq!(registers.read(IRTA as u64, 8), 0);
        assert_eq!(registers.wanted, STATES);
        assert!(!registers.interrupt_table_wanted);
    }

    #[test]
    fn a_running_invalidation_cannot_be_changed() {
        let mut registers = registers();
        registers.write(CCMD as u64, 8, BUSY | 1 << 61 | 5);
        registers.write(CCMD as u64, 8, 7);
        assert_eq!(registers.ccmd, BUSY | 1 << 61 | 5);
        registers.write(IOTLB as u64 + 4, 4, 0x9000_0003);
        registers.write(IOTLB as u64, 8, 0);
        assert_eq!(registers.read(IOTLB as u64, 8), 0x9000_0003 << 32);
    }

    #[test]
    fn the_tail_keeps_only_its_offset() {
        let mut registers = registers();
        registers.write(IQT as u64, 8, u64::MAX);
        assert_eq!(registers.tail, QUEUE_OFFSET);
    }
}
