//! The unit's state as it travels.
//!
//! Everything the guest can see, and what it asked for that is not done yet.
//! Which host domain a device uses is not part of it: the destination finds that
//! out from the guest's tables.

use super::VtdViommu;
use super::event::Event;
use super::faults::{FaultRegisters, RECORDS};
use super::registers::{
    BUSY, CCMD_DONE, CCMD_WRITABLE, IOTLB_DONE, IOTLB_WRITABLE, IQA_WRITABLE, IVA_WRITABLE,
    RTADDR_WRITABLE, Registers,
};
use crate::viommu::{MAX_DEVICES, Msi, StateError};
use crate::vtd::registers::{EVENT_MASK, EVENT_PENDING, QUEUE_OFFSET};
use crate::vtd::{FaultStatus, Global, InterruptTableAddress};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The layout's version.
pub const STATE_VERSION: u32 = 2;

/// [`VtdViommu`]'s state: little-endian, without padding, the same on all machines.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VtdState {
    version: U32,
    /// IOVA bits: 39 or 48.
    width: U32,
    /// Whether interrupts can be remapped: 0 or 1.
    interrupt_remapping: U32,
    device_count: U32,
    devices: [U16; MAX_DEVICES],
    wanted: U32,
    root_wanted: U32,
    interrupt_table_wanted: U32,
    status: U32,
    wait_complete: U32,
    fault_status: U32,
    fault_oldest: U32,
    fault_next: U32,
    rtaddr: U64,
    root: U64,
    irta: U64,
    interrupt_table: U64,
    ccmd: U64,
    iva: U64,
    iotlb: U64,
    head: U64,
    tail: U64,
    queue: U64,
    fault_event: EventState,
    completion: EventState,
    /// Low and high half of each.
    fault_records: [[U64; 2]; RECORDS],
}

/// One event's registers, and the message it has sent that nobody has taken yet.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct EventState {
    control: U32,
    data: U32,
    address: U32,
    upper: U32,
    /// 0 or 1.
    is_sent: U32,
    sent_data: U32,
    sent_address: U64,
}

impl EventState {
    fn save(event: &Event) -> Self {
        let sent = event.sent.unwrap_or(Msi {
            address: 0,
            data: 0,
        });
        Self {
            control: event.control.into(),
            data: event.data.into(),
            address: event.address.into(),
            upper: event.upper.into(),
            is_sent: u32::from(event.sent.is_some()).into(),
            sent_data: sent.data.into(),
            sent_address: sent.address.into(),
        }
    }

    fn restore(&self, name: &'static str) -> Result<Event, StateError> {
        let control = self.control.get();
        let sent = Msi {
            address: self.sent_address.get(),
            data: self.sent_data.get(),
        };
        let event = Event {
            control,
            data: self.data.get(),
            address: self.address.get(),
            upper: self.upper.get(),
            sent: flag(self.is_sent, name)?.then_some(sent),
        };
        // Pending and unmasked does not last: it is sent at once.
        let lasts = control & !(EVENT_MASK | EVENT_PENDING) == 0 && control != EVENT_PENDING;
        let is_aligned = event.address & 3 == 0 && sent.address & 3 == 0;
        // What would be saved differently was not saved by a unit.
        if lasts && is_aligned && Self::save(&event) == *self {
            Ok(event)
        } else {
            Err(StateError::Register(name))
        }
    }
}

/// The state of `unit`.
pub(super) fn save(unit: &VtdViommu) -> VtdState {
    let registers = &unit.registers;
    let faults = &registers.faults;
    let devices = unit.shadows.devices();
    let guest_id = |index: usize| {
        devices
            .get(index)
            .map_or(0, |device| device.ids.guest.raw())
    };
    VtdState {
        version: STATE_VERSION.into(),
        width: u32::from(unit.width.bits()).into(),
        interrupt_remapping: u32::from(registers.remaps_interrupts()).into(),
        device_count: (devices.len() as u32).into(),
        devices: core::array::from_fn(|index| guest_id(index).into()),
        wanted: registers.wanted.bits().into(),
        root_wanted: u32::from(registers.root_wanted).into(),
        interrupt_table_wanted: u32::from(registers.interrupt_table_wanted).into(),
        status: registers.status.bits().into(),
        wait_complete: u32::from(registers.wait_complete).into(),
        fault_status: faults.sticky.bits().into(),
        fault_oldest: u32::from(faults.oldest).into(),
        fault_next: u32::from(faults.next).into(),
        rtaddr: registers.rtaddr.into(),
        root: registers.root.into(),
        irta: registers.irta.into(),
        interrupt_table: registers.interrupt_table.into(),
        ccmd: registers.ccmd.into(),
        iva: registers.iva.into(),
        iotlb: registers.iotlb.into(),
        head: registers.head.into(),
        tail: registers.tail.into(),
        queue: registers.queue.into(),
        fault_event: EventState::save(&faults.event),
        completion: EventState::save(&registers.completion),
        fault_records: faults
            .records
            .map(|record| [(record as u64).into(), ((record >> 64) as u64).into()]),
    }
}

/// The registers in `state`, if `unit` can have come to them.
pub(super) fn registers(unit: &VtdViommu, state: &VtdState) -> Result<Registers, StateError> {
    if state.version != STATE_VERSION {
        return Err(StateError::Version(state.version.get()));
    }
    let own = save(unit);
    let shape = |state: &VtdState| {
        let remapping = state.interrupt_remapping;
        (state.width, remapping, state.device_count, state.devices)
    };
    if shape(state) != shape(&own) {
        return Err(StateError::Configuration);
    }
    // A unit that remaps none has no such registers.
    let remaps = unit.registers.remaps_interrupts();
    let interrupt_tables = match remaps {
        true => InterruptTableAddress::WRITABLE,
        false => 0,
    };
    Ok(Registers {
        wanted: global(state.wanted, unit.registers.states(), "GCMD")?,
        root_wanted: flag(state.root_wanted, "GCMD")?,
        interrupt_table_wanted: flag(state.interrupt_table_wanted, "GCMD")? && remaps,
        status: global(state.status, unit.registers.statuses(), "GSTS")?,
        rtaddr: masked(state.rtaddr, RTADDR_WRITABLE, "RTADDR")?,
        root: masked(state.root, RTADDR_WRITABLE, "RTADDR")?,
        irta: masked(state.irta, interrupt_tables, "IRTA")?,
        interrupt_table: masked(state.interrupt_table, interrupt_tables, "IRTA")?,
        ccmd: masked(state.ccmd, BUSY | CCMD_WRITABLE | CCMD_DONE, "CCMD")?,
        iva: masked(state.iva, IVA_WRITABLE, "IVA")?,
        iotlb: masked(state.iotlb, BUSY | IOTLB_WRITABLE | IOTLB_DONE, "IOTLB")?,
        head: masked(state.head, QUEUE_OFFSET, "IQH")?,
        tail: masked(state.tail, QUEUE_OFFSET, "IQT")?,
        queue: masked(state.queue, IQA_WRITABLE, "IQA")?,
        wait_complete: flag(state.wait_complete, "ICS")?,
        completion: state.completion.restore("IECTL")?,
        faults: faults(state)?,
        ..unit.registers
    })
}

fn faults(state: &VtdState) -> Result<FaultRegisters, StateError> {
    let index = |value: U32| {
        let index = u8::try_from(value.get()).ok();
        index
            .filter(|&index| usize::from(index) < RECORDS)
            .ok_or(StateError::Register("FSTS"))
    };
    let sticky = FaultStatus::from_bits(state.fault_status.get())
        .filter(|&flags| FaultRegisters::STICKY.contains(flags))
        .ok_or(StateError::Register("FSTS"))?;
    Ok(FaultRegisters {
        sticky,
        oldest: index(state.fault_oldest)?,
        next: index(state.fault_next)?,
        // Nothing acts on a record but the guest that reads it.
        records: state
            .fault_records
            .map(|[low, high]| u128::from(high.get()) << 64 | u128::from(low.get())),
        event: state.fault_event.restore("FECTL")?,
    })
}

fn global(value: U32, allowed: Global, name: &'static str) -> Result<Global, StateError> {
    Global::from_bits(value.get())
        .filter(|&flags| allowed.contains(flags))
        .ok_or(StateError::Register(name))
}

fn masked(value: U64, allowed: u64, name: &'static str) -> Result<u64, StateError> {
    let value = value.get();
    if value & !allowed == 0 {
        Ok(value)
    } else {
        Err(StateError::Register(name))
    }
}

fn flag(value: U32, name: &'static str) -> Result<bool, StateError> {
    match value.get() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(StateError::Register(name)),
    }
}
