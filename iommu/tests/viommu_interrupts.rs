//! The emulated VT-d unit's interrupt remapping, as a driver uses it.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used)]

mod viommu_support;

use hv_core::platform::apic::{Delivery, Destination, Message, Msi};
use iommu::unit::SourceId;
use iommu::viommu::Viommu;
use iommu::viommu::vtd::{VtdConfig, VtdViommu};
use iommu::vtd::registers::{ECAP, FSTS, GCMD, GSTS, IRTA};
use iommu::vtd::{
    Descriptor, FaultRecord, FaultStatus, Global, InterruptCacheScope, InterruptEntry,
    InterruptFaultReason as Reason, InterruptRequest, InterruptTableAddress,
};
use viommu_support::*;

const TABLE: u64 = 0xb000;
const QUEUE_ON: Global = Global::QUEUED_INVALIDATION;
const ON: Global = Global::QUEUED_INVALIDATION.union(Global::INTERRUPT_REMAPPING);
const COMPATIBLE: Msi = Msi {
    address: 0xfee0_1000,
    data: 0x55,
};

/// Remapping by a table of one page, on as a driver turns it on.
fn remapping(extended: bool) -> Machine {
    let mut machine = Machine::new();
    machine.write(iommu::vtd::registers::IQA, QUEUE);
    machine.command(QUEUE_ON);
    let table = InterruptTableAddress {
        base: TABLE,
        extended,
        order: InterruptTableAddress::ONE_PAGE,
    };
    machine.write(IRTA, table.encode());
    machine.command(QUEUE_ON | Global::INTERRUPT_TABLE);
    machine.queue(Descriptor::InterruptCache(InterruptCacheScope::Global));
    machine.settle();
    machine.command(ON);
    assert!(machine.status().contains(ON | Global::INTERRUPT_TABLE));
    machine
}

fn set_entry(machine: &Machine, index: u64, raw: u128) {
    machine.poke(TABLE + index * 16 + 8, (raw >> 64) as u64);
    machine.poke(TABLE + index * 16, raw as u64);
}

fn ask(machine: &mut Machine, source: SourceId, msi: Msi) -> Option<Message> {
    machine.unit.remap_interrupt(machine.memory, source, msi)
}

/// The oldest fault, which is taken: who, which index, why.
fn take_fault(machine: &mut Machine) -> Option<(SourceId, u16, u8)> {
    let status = machine.read32(FSTS);
    if !FaultStatus::from_bits_truncate(status).contains(FaultStatus::PENDING) {
        return None;
    }
    let at = 0x200 + usize::from(FaultStatus::oldest_record(status)) * FaultRecord::SIZE;
    let raw = u128::from(machine.read(at + 8)) << 64 | u128::from(machine.read(at));
    machine.write32(at + FaultRecord::IN_USE_OFFSET, FaultRecord::IN_USE);
    let record = FaultRecord::decode(raw).unwrap();
    let index = (record.page.raw() >> 48) as u16;
    Some((record.source, index, record.reason))
}

fn fixed(id: u32, vector: u8) -> Option<Message> {
    let to = Destination::Physical(id);
    let delivery = Delivery::Fixed(vector);
    Some(Message { to, delivery })
}

#[test]
fn messages_pass_as_they_are_until_remapping_is_on() {
    let mut machine = Machine::new();
    assert_eq!(ask(&mut machine, NIC.guest, COMPATIBLE), fixed(1, 0x55));
    machine.write(IRTA, TABLE | 7);
    machine.command(Global::INTERRUPT_TABLE);
    assert_eq!(ask(&mut machine, NIC.guest, COMPATIBLE), fixed(1, 0x55));
    machine.command(Global::INTERRUPT_REMAPPING);
    assert_eq!(ask(&mut machine, NIC.guest, COMPATIBLE), None);
    machine.command(Global::empty());
    assert_eq!(ask(&mut machine, NIC.guest, COMPATIBLE), fixed(1, 0x55));
}

#[test]
fn an_entry_says_where_its_owners_interrupt_goes() {
    let mut machine = remapping(false);
    let entry = InterruptEntry::xapic(NIC.guest, 3, 0x41);
    set_entry(&machine, 9, entry.encode());
    let message = InterruptRequest::message(9);
    assert_eq!(ask(&mut machine, NIC.guest, message), fixed(3, 0x41));
    assert_eq!(ask(&mut machine, DISK.guest, message), None);
    let refused = (DISK.guest, 9, Reason::WrongSource.code());
    assert_eq!(take_fault(&mut machine), Some(refused));
    // A change holds at once, as nothing is cached.
    set_entry(
        &machine,
        9,
        InterruptEntry::xapic(NIC.guest, 4, 0x42).encode(),
    );
    assert_eq!(ask(&mut machine, NIC.guest, message), fixed(4, 0x42));
}

#[test]
fn destinations_have_the_width_and_the_mode_that_the_table_has() {
    let entry = |logical, destination, delivery| InterruptEntry {
        logical,
        destination,
        delivery,
        ..InterruptEntry::xapic(NIC.guest, 0, 0x41)
    };
    let fixed = Some(Delivery::Fixed(0x41));
    for (extended, entry, to, delivery) in [
        (
            true,
            entry(false, 0x100, 0),
            Destination::Physical(0x100),
            fixed,
        ),
        (
            true,
            entry(true, 0x1_0002, 0),
            Destination::Logical(0x1_0002),
            fixed,
        ),
        (true, entry(false, u32::MAX, 0), Destination::All, fixed),
        (false, entry(true, 0x300, 0), Destination::Logical(3), fixed),
        (false, entry(false, 0xff00, 0), Destination::All, fixed),
        (
            true,
            entry(true, 3, 1),
            Destination::Logical(3),
            Some(Delivery::LowestPriority(0x41)),
        ),
        (
            true,
            entry(false, 2, 4),
            Destination::Physical(2),
            Some(Delivery::Nmi),
        ),
        // SMI: no device here sends one.
        (true, entry(false, 0, 2), Destination::All, None),
    ] {
        let mut machine = remapping(extended);
        set_entry(&machine, 0, entry.encode());
        let message = ask(&mut machine, NIC.guest, InterruptRequest::message(0));
        let expected = delivery.map(|delivery| Message { to, delivery });
        assert_eq!(message, expected, "{entry:?}");
    }
}

#[test]
fn what_is_malformed_is_refused_and_recorded_each_for_its_reason() {
    let good = InterruptEntry::xapic(NIC.guest, 0, 0x41).encode();
    let reserved_request = Msi {
        address: 0xfee0_0018,
        data: 1 << 16,
    };
    for (raw, msi, index, reason) in [
        (0, InterruptRequest::message(3), 3, Reason::NotPresent),
        (
            good,
            InterruptRequest::message(256),
            256,
            Reason::BeyondTable,
        ),
        (
            good | 1 << 100,
            InterruptRequest::message(3),
            3,
            Reason::EntryReserved,
        ),
        (
            good | 1 << 15,
            InterruptRequest::message(3),
            3,
            Reason::EntryReserved,
        ),
        (good, COMPATIBLE, 0, Reason::CompatibilityFormat),
        (good, reserved_request, 0, Reason::RequestReserved),
    ] {
        let mut machine = remapping(true);
        set_entry(&machine, 3, raw);
        assert_eq!(ask(&mut machine, NIC.guest, msi), None);
        let refused = (NIC.guest, index, reason.code());
        assert_eq!(take_fault(&mut machine), Some(refused), "{reason}");
        assert_eq!(take_fault(&mut machine), None);
    }
    let mut machine = remapping(true);
    machine.write(IRTA, FRAMES << 12 | 7);
    machine.command(ON | Global::INTERRUPT_TABLE);
    assert_eq!(
        ask(&mut machine, NIC.guest, InterruptRequest::message(2)),
        None
    );
    let refused = (NIC.guest, 2, Reason::TableUnreadable.code());
    assert_eq!(take_fault(&mut machine), Some(refused));
}

#[test]
fn an_entry_can_keep_its_faults_to_itself() {
    let mut machine = remapping(true);
    let silent = InterruptEntry {
        silent: true,
        ..InterruptEntry::xapic(NIC.guest, 0, 0x41)
    };
    set_entry(&machine, 1, silent.encode());
    set_entry(&machine, 2, silent.encode() & !1);
    for index in [1, 2] {
        let message = InterruptRequest::message(index);
        assert_eq!(ask(&mut machine, DISK.guest, message), None);
    }
    assert_eq!(take_fault(&mut machine), None);
}

#[test]
fn compatibility_format_passes_while_it_is_let_and_ids_have_8_bits() {
    for (extended, passes) in [(false, true), (true, false)] {
        let mut machine = remapping(extended);
        machine.command(ON | Global::COMPATIBILITY_INTERRUPTS);
        let message = ask(&mut machine, NIC.guest, COMPATIBLE);
        assert_eq!(message, fixed(1, 0x55).filter(|_| passes));
    }
}

#[test]
fn the_table_in_force_goes_along_and_a_pending_command_too() {
    let mut machine = remapping(true);
    let entry = InterruptEntry {
        destination: 1,
        ..InterruptEntry::xapic(NIC.guest, 0, 0x41)
    };
    set_entry(&machine, 5, entry.encode());
    // Written and not taken: it is not in force.
    machine.write(IRTA, 0);
    let state = machine.unit.save();
    machine.unit = VtdViommu::new(&config());
    machine.unit.restore(&state).unwrap();
    let message = InterruptRequest::message(5);
    assert_eq!(ask(&mut machine, NIC.guest, message), fixed(1, 0x41));

    let taken = ON | Global::INTERRUPT_TABLE;
    machine.write32(GCMD, taken.bits());
    let state = machine.unit.save();
    machine.unit = VtdViommu::new(&config());
    machine.unit.restore(&state).unwrap();
    machine.settle();
    assert!(machine.status().contains(taken));
    assert_eq!(ask(&mut machine, NIC.guest, message), None);
}

#[test]
fn a_unit_without_remapping_offers_none_and_knows_no_such_descriptor() {
    let mut machine = Machine::new();
    machine.unit = VtdViommu::new(&VtdConfig {
        interrupt_remapping: false,
        ..config()
    });
    assert_eq!(machine.read(ECAP) & 0x18, 0);
    machine.write(IRTA, TABLE | 7);
    machine.write32(GCMD, ON.bits() | Global::INTERRUPT_TABLE.bits());
    machine.settle();
    assert_eq!(machine.read32(GSTS), QUEUE_ON.bits());
    assert_eq!(ask(&mut machine, NIC.guest, COMPATIBLE), fixed(1, 0x55));
    machine.write(iommu::vtd::registers::IQA, QUEUE);
    machine.queue(Descriptor::InterruptCache(InterruptCacheScope::Global));
    machine.settle();
    let status = FaultStatus::from_bits_truncate(machine.read32(FSTS));
    assert!(status.contains(FaultStatus::QUEUE_ERROR));
}
