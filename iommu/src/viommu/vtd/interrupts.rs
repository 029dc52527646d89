//! Interrupt remapping: what a message of a device becomes.
//!
//! Intel VT-d specification, sections "Interrupt Remapping" and "Interrupt-Remapping
//! Fault Conditions". Entries are read for each message and kept nowhere, so an
//! invalidation of cached ones is done as soon as it is asked for.
//!
//! The unit's own messages (its fault and invalidation events) are not remapped.

use super::VtdViommu;
use crate::Iova;
use crate::unit::SourceId;
use crate::vtd::interrupt_fault::information_of;
use crate::vtd::{
    FaultRecord, Global, InterruptEntry, InterruptFaultReason as Reason, InterruptRequest,
    InterruptTableAddress, RequestKind,
};
use hv_core::Gpa;
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::platform::apic::{Delivery, Destination, Message, Msi};

/// A request that the unit refuses.
struct Refusal {
    reason: Reason,
    index: u16,
    /// Not to be recorded (FPD).
    silent: bool,
}

impl VtdViommu {
    /// What the message `msi` of `source`, as the guest sees it, asks for. `None`: it is
    /// refused, and recorded as a fault, or asks for what no device here may ask for.
    pub fn remap_interrupt<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        source: SourceId,
        msi: Msi,
    ) -> Option<Message> {
        let status = self.registers.status;
        if !status.contains(Global::INTERRUPT_REMAPPING) {
            return Message::from_msi(msi);
        }
        let table = InterruptTableAddress::decode(self.registers.interrupt_table);
        let passes = status.contains(Global::COMPATIBILITY_INTERRUPTS) && !table.extended;
        let answer = match InterruptRequest::decode(msi) {
            Ok(InterruptRequest::Compatibility) if passes => return Message::from_msi(msi),
            Ok(InterruptRequest::Compatibility) => Err(refuse(Reason::CompatibilityFormat)),
            Ok(InterruptRequest::Remappable { index }) => entry(guest, table, index, source),
            Err(reason) => Err(refuse(reason)),
        };
        match answer {
            Ok(entry) => message(entry, table.extended),
            Err(refusal) => {
                self.record_refusal(source, refusal);
                None
            }
        }
    }

    fn record_refusal(&mut self, source: SourceId, refusal: Refusal) {
        let Refusal {
            reason,
            index,
            silent,
        } = refusal;
        if silent && reason.is_qualified() {
            return;
        }
        self.registers.faults.record(FaultRecord {
            page: Iova::new(information_of(index)),
            source,
            reason: reason.code(),
            kind: RequestKind::Write,
        });
    }
}

/// A refusal that is not about an entry.
const fn refuse(reason: Reason) -> Refusal {
    Refusal {
        reason,
        index: 0,
        silent: false,
    }
}

/// The entry `index` of the guest's table, for a request of `source`.
fn entry<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    table: InterruptTableAddress,
    index: u32,
    source: SourceId,
) -> Result<InterruptEntry, Refusal> {
    let refuse = |reason, silent| Refusal {
        reason,
        // More than a record has room for is beyond any table.
        index: u16::try_from(index).unwrap_or(u16::MAX),
        silent,
    };
    if index >= table.entries() {
        return Err(refuse(Reason::BeyondTable, false));
    }
    let offset = u64::from(index) * InterruptEntry::SIZE as u64;
    let word = |at| {
        let gpa = Gpa::new(table.base).checked_add(offset + at)?;
        guest.read_u64(gpa).ok()
    };
    let (Some(low), Some(high)) = (word(0), word(8)) else {
        return Err(refuse(Reason::TableUnreadable, false));
    };
    let raw = u128::from(high) << 64 | u128::from(low);
    InterruptEntry::decode(raw, source)
        .map_err(|reason| refuse(reason, InterruptEntry::is_silent(raw)))
}

/// What an entry stands for; `None` if its delivery mode is one that no device here
/// has.
fn message(entry: InterruptEntry, extended: bool) -> Option<Message> {
    let delivery = Delivery::of_device(entry.delivery, entry.vector)?;
    let (id, everybody) = match extended {
        true => (entry.destination, u32::MAX),
        false => (entry.destination >> 8 & 0xff, 0xff),
    };
    let to = match (id == everybody, entry.logical) {
        (true, _) => Destination::All,
        (_, true) => Destination::Logical(id),
        (_, false) => Destination::Physical(id),
    };
    Some(Message { to, delivery })
}
