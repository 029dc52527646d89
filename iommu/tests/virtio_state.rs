//! The virtio-iommu's state on its way to another machine.

mod virtio_support;

use iommu::layer::MapError;
use iommu::viommu::virtio::{MAPPING_BYTES, VirtioIommu, VirtioState};
use iommu::viommu::{Passthroughs, StateError, Viommu};
use virtio_support::*;
use zerocopy::{FromBytes, IntoBytes};

/// A machine with mappings of all sorts, and an unmap and a switch on their way.
fn busy() -> Machine {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(5, NIC, 0), OK);
    assert_eq!(machine.attach(6, DISK, 0), OK);
    assert_eq!(machine.map_pages(5, 0, 1, DATA), OK);
    assert_eq!(machine.map_pages(5, 1, 1, DATA + 1), OK);
    assert_eq!(machine.map_pages(5, 400, 700, DATA), OK);
    assert_eq!(machine.map_pages(6, 512, 512, 512), OK);
    machine.submit_request(&unmap(5, 400 << 12, (1100 << 12) - 1), 4);
    machine.submit_request(&map(5, 400 << 12, (1300 << 12) - 1, 0x3000, READ), 4);
    machine.submit_request(&attach(5, 0x20, 0), 4);
    machine
}

#[test]
fn requests_cut_anywhere_are_finished_by_the_destination() {
    for steps in 0..30 {
        let mut machine = busy();
        for _ in 0..steps {
            machine.step();
        }
        let state = machine.unit.save();
        machine.migrate(MAPPING_BYTES).unwrap();
        assert_eq!(machine.unit.save(), state);
        machine.settle();
        assert_eq!(machine.last_status(), OK);
        let mut expected = vec![(0, DATA, 3), (1, DATA + 1, 3)];
        expected.extend((0..900).map(|page| (400 + page, 3 + page, READ)));
        assert_eq!(machine.pages(NIC), expected);
        assert_eq!(machine.pages(DISK), expected);
        // Boundaries went along.
        assert_eq!(machine.unmap_pages(5, 400, 1), RANGE);
        assert_eq!(machine.unmap_pages(5, 0, 1), OK);
    }
}

#[test]
fn a_mapping_that_a_map_has_yet_to_run_into_goes_along() {
    for steps in 0..6 {
        let mut machine = Machine::new();
        assert_eq!(machine.attach(5, NIC, 0), OK);
        assert_eq!(machine.map_pages(5, 1200, 1, DATA), OK);
        machine.submit_request(&map(5, 0, (1300 << 12) - 1, 0, READ), 4);
        (0..steps).for_each(|_| {
            machine.step();
        });
        machine.migrate(MAPPING_BYTES).unwrap();
        machine.settle();
        assert_eq!(machine.last_status(), INVAL);
        assert_eq!(machine.pages(NIC), [(1200, DATA, 3)]);
    }
}

#[test]
fn faults_and_interrupts_go_along() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, 0), OK);
    machine.migrate(320).unwrap();
    assert_eq!(machine.read(0x60), 1, "nobody acknowledged it");
    machine.descriptor(machine.events, 0, (0x6000, 24, true), None);
    machine.offer(true, 0);
    machine.settle();
    machine
        .unit
        .inject_fault(machine.memory, NIC.host, iommu::Iova::new(0), true);
    assert_eq!(machine.used(true), Some(24));
}

#[test]
fn state_of_another_version_or_configuration_is_refused() {
    let state = busy().unit.save();
    let mut bytes = state.as_bytes().to_vec();
    bytes[0] = 1;
    let other = VirtioState::read_from_bytes(&bytes).unwrap();
    let mut unit = VirtioIommu::new(&config());
    assert_eq!(unit.restore(&other), Err(StateError::Version(1)));
    let mut wide = config();
    wide.width = 48;
    let mut lonely = config();
    lonely.devices = Passthroughs::new();
    for config in [wide, lonely] {
        let mut unit = VirtioIommu::new(&config);
        assert_eq!(unit.restore(&state), Err(StateError::Configuration));
    }
}

#[test]
fn a_flipped_bit_is_refused_or_restored_exactly() {
    let mut machine = busy();
    let bytes = machine.unit.save().as_bytes().to_vec();
    let reset = VirtioIommu::new(&config()).save();
    let mut refused = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let state = VirtioState::read_from_bytes(&flipped).unwrap();
        let mut unit = VirtioIommu::new(&config());
        match unit.restore(&state) {
            Ok(()) => assert_eq!(unit.save(), state),
            Err(_) => {
                refused += 1;
                assert_eq!(unit.save(), reset, "a refused state changes nothing");
            }
        }
        if bit % 16 == 0 && machine.arrive(&flipped, &[]).is_ok() {
            machine.settle();
        }
    }
    assert!(refused > 300, "{refused}");
}

/// Flags of a record: a whole mapping with both rights.
const WHOLE: u32 = 0b1111;

fn record(domain: u32, flags: u32, [start, pages, gfn]: [u64; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([domain, flags].map(u32::to_le_bytes).as_flattened());
    bytes.extend([start, pages, gfn].map(u64::to_le_bytes).as_flattened());
    bytes
}

/// What a new machine says to these mappings, in portions.
fn arrive(portions: &[Vec<u8>]) -> Result<(), StateError> {
    let mut machine = busy();
    let state = machine.unit.save();
    machine.arrive(state.as_bytes(), portions)
}

const MALFORMED: Result<(), StateError> = Err(StateError::Register("a mapping"));

#[test]
fn a_mapping_that_no_unit_can_have_is_refused() {
    assert_eq!(arrive(&[record(5, WHOLE, [0x1000, 1, DATA])]), Ok(()));
    for bad in [
        record(7, WHOLE, [0x1000, 1, DATA]),
        record(5, 0b1100, [0x1000, 1, DATA]),
        record(5, 0b1_1111, [0x1000, 1, DATA]),
        record(5, WHOLE, [0x1001, 1, DATA]),
        record(5, WHOLE, [0x1000, 0, DATA]),
        record(5, WHOLE, [0x1000, 1 << 52, DATA]),
        record(5, WHOLE, [1 << 39, 1, DATA]),
        record(5, WHOLE, [0xfee0_0000, 1, DATA]),
        record(5, WHOLE, [0x1000, 1, DATA])[1..].to_vec(),
    ] {
        assert_eq!(arrive(&[bad]), MALFORMED);
    }
    let outside = arrive(&[record(5, WHOLE, [0x1000, 1, FRAMES])]);
    assert_eq!(outside, Err(StateError::Mapping(MapError::NotGuestMemory)));
    let twice = [
        record(5, WHOLE, [0, 2, DATA]),
        record(5, WHOLE, [0x1000, 1, DATA]),
    ];
    assert_eq!(
        arrive(&[twice.concat()]),
        Err(StateError::Mapping(MapError::Overlap))
    );
}

#[test]
fn a_piece_that_does_not_follow_the_one_before_is_refused() {
    const BEGIN: u32 = 0b0111;
    const MIDDLE: u32 = 0b0011;
    const END: u32 = 0b1011;
    let first = record(5, BEGIN, [0x1000, 2, DATA]);
    let next = |flags, place| vec![first.clone(), record(5, flags, place)];
    assert_eq!(arrive(&next(END, [0x3000, 1, DATA + 2])), Ok(()));
    assert_eq!(arrive(&next(MIDDLE, [0x3000, 1, DATA + 2])), Ok(()));
    for bad in [
        next(END, [0x4000, 1, DATA + 2]),
        next(END, [0x3000, 1, DATA + 3]),
        next(END & !2, [0x3000, 1, DATA + 2]),
        next(WHOLE, [0x3000, 1, DATA + 2]),
        vec![first.clone(), record(6, END, [0x3000, 1, DATA + 2])],
        vec![record(5, END, [0x3000, 1, DATA])],
    ] {
        assert_eq!(arrive(&bad), MALFORMED);
    }
}

/// Pages that go into one portion.
const PORTION: u64 = 16 * 512;

#[test]
fn a_portion_of_more_than_a_turns_work_is_refused() {
    let many = |pages| {
        let mapping = |index| record(5, 0b1101, [(index * pages) << 12, pages, 0]);
        let mappings = |count| (0..count).map(mapping).collect::<Vec<_>>().concat();
        mappings(PORTION / pages + 1)
    };
    assert_eq!(arrive(&[many(1024)]), MALFORMED);
    assert_eq!(arrive(&[record(5, WHOLE, [0, PORTION + 1, 0])]), MALFORMED);
}

#[test]
fn mappings_travel_in_portions_of_a_turns_work_and_arrive_whole() {
    let mut machine = Machine::with_tables(64);
    machine.settle();
    machine.start(iommu::viommu::virtio::Features::all().bits());
    machine.set_bypass(false);
    assert_eq!(machine.attach(5, NIC, 0), OK);
    // Never aligned for large leaves, and more than a portion takes.
    for index in 0..12 {
        assert_eq!(machine.map_pages(5, 2048 * index, 1500, 1), OK);
    }
    let before = machine.pages(NIC);
    let portions = machine.portions(4096);
    let pages = |portion: &Vec<u8>| -> u64 {
        let records = portion.chunks_exact(MAPPING_BYTES);
        let pages = records.map(|record| u64::from_le_bytes(record[16..24].try_into().unwrap()));
        pages.sum()
    };
    let sizes: Vec<u64> = portions.iter().map(pages).collect();
    assert_eq!(sizes, [PORTION, PORTION, 12 * 1500 - 2 * PORTION]);
    let state = machine.unit.save();
    machine.arrive(state.as_bytes(), &portions).unwrap();
    machine.settle();
    assert_eq!(machine.pages(NIC), before);
    for index in 0..12 {
        let page = 2048 * index;
        assert_eq!(
            machine.unmap_pages(5, page, 1499),
            RANGE,
            "cut mapping {index}"
        );
        assert_eq!(machine.unmap_pages(5, page, 1500), OK);
    }
}
