//! The emulated VT-d unit's state on its way to another machine.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails its test")]

mod viommu_support;

use iommu::Iova;
use iommu::space::{Access, Attachment};
use iommu::viommu::vtd::{STATE_VERSION, VtdConfig, VtdState, VtdViommu};
use iommu::viommu::{Passthroughs, StateError, Viommu};
use iommu::vtd::registers::{CCMD, GCMD, IECTL, IQT, RTADDR};
use iommu::vtd::{AddressWidth, ContextCacheScope, Descriptor, Global, IotlbScope};
use viommu_support::*;
use zerocopy::{FromBytes, IntoBytes};

/// The guest and its memory as they are, under a new unit with `state` and a new
/// host side.
fn migrate(machine: &mut Machine, state: &VtdState) -> Result<(), StateError> {
    let bytes = state.as_bytes().to_vec();
    machine.unit = VtdViommu::new(&config());
    machine.space = FakeSpace::new();
    let arrived = VtdState::read_from_bytes(&bytes).unwrap();
    machine.unit.restore(&arrived)
}

/// A machine with a switch of domains, an unmap and a map in its queue.
fn busy() -> Machine {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.set_leaf(TABLE_B, 9, leaf(DATA + 2));
    machine.queue_pages(5, 7, 0, 1);
    machine.settle();
    machine.set_leaf(TABLE_A, 7, 0);
    machine.set_leaf(TABLE_A, 8, leaf(DATA + 1));
    machine.set_context(DISK, 6, TABLE_B);
    machine.queue_pages(5, 7, 0, 2);
    machine.queue(Descriptor::ContextCache(ContextCacheScope::Global));
    machine.queue_iotlb(IotlbScope::Global);
    machine.queue_wait(3);
    machine
}

#[test]
fn a_queue_cut_anywhere_is_finished_by_the_destination() {
    for steps in 0..30 {
        let mut machine = busy();
        for _ in 0..steps {
            machine.step();
        }
        let state = machine.unit.save();
        migrate(&mut machine, &state).unwrap();
        assert!(!machine.unit.is_idle(), "no device is placed yet");
        assert_eq!(machine.unit.save(), state);
        machine.settle();
        assert_eq!(machine.wait_status(), 3);
        assert_eq!(machine.head(), machine.read(IQT));
        assert!(machine.status().contains(Global::TRANSLATION));
        let pages = |device| Vec::from_iter(machine.pages(device).clone());
        assert_eq!(pages(NIC), [(8, mapping(DATA + 1, Access::ReadWrite))]);
        assert_eq!(pages(DISK), [(9, mapping(DATA + 2, Access::ReadWrite))]);
    }
}

#[test]
fn commands_that_were_given_and_not_done_are_done_by_the_destination() {
    let mut machine = Machine::translating();
    machine.set_context(DISK, 6, TABLE_B);
    machine.write(CCMD, 1 << 63 | 1 << 61);
    let state = machine.unit.save();
    migrate(&mut machine, &state).unwrap();
    machine.settle();
    assert_eq!(machine.read(CCMD) >> 63, 0);
    assert!(matches!(machine.place(DISK), Attachment::Domain(_)));

    machine.write(RTADDR, 0);
    let off = Global::QUEUED_INVALIDATION | Global::ROOT_TABLE;
    machine.write32(GCMD, off.bits());
    let state = machine.unit.save();
    migrate(&mut machine, &state).unwrap();
    machine.settle();
    assert_eq!(machine.status(), off);
    assert_eq!(machine.place(NIC), Attachment::Identity);
}

#[test]
fn faults_and_interrupts_nobody_has_seen_yet_go_along() {
    let mut machine = Machine::translating();
    machine.write32(IECTL, 0);
    let interrupt = Descriptor::Wait {
        status: None,
        interrupt: true,
        fence: false,
    };
    machine.queue(interrupt);
    machine.settle();
    machine
        .unit
        .inject_fault(machine.memory, NIC.host, Iova::new(0x5000), true);
    let records = [machine.read(0x200), machine.read(0x208)];
    let state = machine.unit.save();
    migrate(&mut machine, &state).unwrap();
    assert_eq!([machine.read(0x200), machine.read(0x208)], records);
    assert!(machine.unit.take_interrupt().is_some());
    assert_eq!(machine.unit.take_interrupt(), None);
}

#[test]
fn a_unit_that_was_in_use_forgets_its_former_life() {
    let mut machine = busy();
    machine.settle();
    let state = machine.unit.save();
    machine.set_leaf(TABLE_A, 8, 0);
    machine.unit.restore(&state).unwrap();
    machine.settle();
    assert!(machine.pages(NIC).is_empty(), "the shadow is built anew");

    let fresh = VtdViommu::new(&config()).save();
    machine.unit.restore(&fresh).unwrap();
    machine.settle();
    assert_eq!(machine.place(NIC), Attachment::Identity);
    assert!(machine.space.domains.is_empty());
}

#[test]
fn state_of_another_version_or_configuration_is_refused() {
    let state = busy().unit.save();
    let mut bytes = state.as_bytes().to_vec();
    bytes[0] += 1;
    let other = VtdState::read_from_bytes(&bytes).unwrap();
    let mut unit = VtdViommu::new(&config());
    assert_eq!(
        unit.restore(&other),
        Err(StateError::Version(STATE_VERSION + 1))
    );

    let mut wide = VtdViommu::new(&VtdConfig {
        width: AddressWidth::Bits48,
        ..config()
    });
    assert_eq!(wide.restore(&state), Err(StateError::Configuration));
    let mut without = VtdViommu::new(&VtdConfig {
        interrupt_remapping: false,
        ..config()
    });
    assert_eq!(without.restore(&state), Err(StateError::Configuration));
    let mut lonely = VtdViommu::new(&VtdConfig {
        devices: Passthroughs::new(),
        ..config()
    });
    assert_eq!(lonely.restore(&state), Err(StateError::Configuration));
}

#[test]
fn a_flipped_bit_is_refused_or_restored_exactly() {
    let mut machine = busy();
    let before = machine.unit.save();
    let bytes = before.as_bytes().to_vec();
    let mut refused = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let state = VtdState::read_from_bytes(&flipped).unwrap();
        let mut unit = VtdViommu::new(&config());
        let reset = unit.save();
        match unit.restore(&state) {
            Ok(()) => assert_eq!(unit.save(), state),
            Err(_) => {
                refused += 1;
                assert_eq!(unit.save(), reset, "a refused state changes nothing");
            }
        }
        machine.unit = unit;
        machine.space = FakeSpace::new();
        machine.settle();
    }
    assert!(refused > 500, "{refused}");
}
