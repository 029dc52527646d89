//! The IVRS parser against tables good and bad.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used)]

use hv_core::Hpa;
use iommu::acpi_table::TableError;
use iommu::ivrs::{IvhdFlags, Ivrs, IvrsError};
use iommu::unit::SourceId;
use proptest::prelude::*;

/// A table of these blocks with a right header and checksum.
fn table(blocks: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table.extend_from_slice(blocks);
    let length = table.len() as u32;
    table[..4].copy_from_slice(b"IVRS");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

fn block(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let [low, high] = (body.len() as u16 + 4).to_le_bytes();
    [&[kind, flags, low, high], body].concat()
}

/// A unit at PCI function `function`, with its registers at `base`.
fn ivhd(kind: u8, function: u16, base: u64, entries: &[u8]) -> Vec<u8> {
    let more = if kind == 0x10 { 0 } else { 16 };
    let body = [
        &function.to_le_bytes()[..],
        &0x40u16.to_le_bytes(),
        &base.to_le_bytes(),
        &[0; 8],
        &vec![0; more],
        entries,
    ];
    block(kind, 0b10, &body.concat())
}

fn ivmd(kind: u8, device: u16, last: u16, base: u64, bytes: u64) -> Vec<u8> {
    let body = [
        &device.to_le_bytes()[..],
        &last.to_le_bytes(),
        &[0; 8],
        &base.to_le_bytes(),
        &bytes.to_le_bytes(),
    ];
    block(kind, 0, &body.concat())
}

fn entry(kind: u8, device: u16) -> [u8; 4] {
    let [low, high] = device.to_le_bytes();
    [kind, low, high, 0]
}

fn alias(kind: u8, device: u16, alias: u16) -> [u8; 8] {
    let ([low, high], [a, b]) = (device.to_le_bytes(), alias.to_le_bytes());
    [kind, low, high, 0, 0, a, b, 0]
}

/// Under which requester id the table's units know `device`, and which unit.
fn find(bytes: &[u8], device: u16) -> Option<(u64, u16)> {
    let ivrs = Ivrs::parse(bytes).unwrap();
    let (unit, known_as) = ivrs.unit_for(0, SourceId::new(device))?;
    Some((unit.registers.raw(), known_as.raw()))
}

/// Reads everything there is to read.
fn read_all(ivrs: &Ivrs<'_>) -> usize {
    let known = ivrs
        .units()
        .filter(|unit| unit.requester(SourceId::new(0x18)).is_some());
    let _ = ivrs.names_io_apics();
    known.count() + ivrs.reserved_regions().count()
}

#[test]
fn a_unit_translates_for_the_devices_its_entries_name() {
    let special = [72, 0, 0, 0, 0, 0xa0, 0, 1];
    let acpi_device = [&[240, 0x77, 0][..], &[0; 18], &[3], b"abc"].concat();
    let entries = [
        &entry(2, 0x10)[..],
        &entry(3, 0x20),
        &entry(4, 0x2f),
        &entry(0, 0x55),
        &special,
        &alias(66, 0x38, 0x30),
        &alias(67, 0x100, 0xf8),
        &entry(4, 0x1ff),
        &alias(70, 0x300, 0),
        &acpi_device,
    ]
    .concat();
    let bytes = table(&ivhd(0x40, 2, 0xfed8_0000, &entries));
    let unit = 0xfed8_0000;
    for (device, known_as) in [
        (0x10, Some(0x10)),
        (0x11, None),
        (0x20, Some(0x20)),
        (0x2f, Some(0x2f)),
        (0x30, None),
        (0x38, Some(0x30)),
        (0x55, None),
        (0x77, Some(0x77)),
        (0x180, Some(0xf8)),
        (0x300, Some(0x300)),
    ] {
        let expected = known_as.map(|id| (unit, id));
        assert_eq!(find(&bytes, device), expected, "{device:#x}");
    }
    let ivrs = Ivrs::parse(&bytes).unwrap();
    let unit = ivrs.units().next().unwrap();
    assert_eq!(unit.flags, IvhdFlags::PASS_POSTED);
    assert_eq!((unit.function.raw(), unit.capability), (2, 0x40));
    assert!(ivrs.unit_for(1, SourceId::new(0x10)).is_none());
}

#[test]
fn of_several_descriptions_of_one_unit_the_highest_type_counts() {
    let bytes = table(
        &[
            ivhd(0x10, 2, 0x1000, &entry(1, 0)),
            ivhd(0x40, 2, 0x3000, &entry(2, 0x10)),
            ivhd(0x11, 2, 0x2000, &entry(1, 0)),
            ivhd(0x10, 3, 0x4000, &entry(2, 0x18)),
        ]
        .concat(),
    );
    assert_eq!(Ivrs::parse(&bytes).unwrap().units().count(), 2);
    assert_eq!(find(&bytes, 0x10), Some((0x3000, 0x10)));
    assert_eq!(find(&bytes, 0x18), Some((0x4000, 0x18)));
    assert_eq!(find(&bytes, 0x20), None, "the fullest names it not");
}

#[test]
fn an_io_apic_is_a_special_device_of_its_variety_in_the_description_that_counts() {
    let special = |variety| [72, 0, 0, 0, 0, 0xa0, 0, variety];
    let names = |entries: &[u8]| {
        let old = ivhd(0x10, 2, 0x1000, &special(1));
        let bytes = table(&[old, ivhd(0x11, 2, 0x1000, entries)].concat());
        Ivrs::parse(&bytes).unwrap().names_io_apics()
    };
    assert!(names(
        &[entry(1, 0).as_slice(), &special(2), &special(1)].concat()
    ));
    assert!(!names(&[entry(1, 0).as_slice(), &special(2)].concat()));
    assert!(!names(&alias(66, 1, 1)));
    assert!(!names(&[]));
}

#[test]
fn a_later_entry_overrides_the_one_for_all_devices() {
    let entries = [&entry(1, 0)[..], &alias(66, 0x38, 0x30)].concat();
    let bytes = table(&ivhd(0x11, 2, 0x1000, &entries));
    assert_eq!(find(&bytes, 0x38), Some((0x1000, 0x30)));
    assert_eq!(find(&bytes, 0xffff), Some((0x1000, 0xffff)));
}

#[test]
fn reserved_memory_is_found_with_its_devices() {
    let bytes = table(
        &[
            ivmd(0x20, 0, 0, 0x1000, 0x1000),
            ivmd(0x21, 0x18, 0, 0x2000, 0x2000),
            block(0x50, 0, &[1, 2]),
            ivmd(0x22, 0x20, 0x2f, 0x3000, 0x3000),
        ]
        .concat(),
    );
    let ivrs = Ivrs::parse(&bytes).unwrap();
    let regions: Vec<_> = ivrs
        .reserved_regions()
        .map(|it| (it.first.raw(), it.last.raw(), it.base, it.bytes))
        .collect();
    assert_eq!(
        regions,
        [
            (0, 0xffff, Hpa::new(0x1000), 0x1000),
            (0x18, 0x18, Hpa::new(0x2000), 0x2000),
            (0x20, 0x2f, Hpa::new(0x3000), 0x3000),
        ]
    );
}

#[test]
fn reserved_memory_is_found_for_each_device_that_may_use_it() {
    let one = ivmd(0x21, 0x18, 0, 0x2000, 0x2000);
    let range = ivmd(0x22, 0x20, 0x2f, u64::MAX - 0xfff, 0x3000);
    let bytes = table(&[one, range].concat());
    let ivrs = Ivrs::parse(&bytes).unwrap();
    let found = |device| {
        let region = ivrs.reserved_for(SourceId::new(device))?;
        Some((region.first.raw(), region.last.raw()))
    };
    assert_eq!(found(0x18), Some((0x2000, 0x3fff)));
    for device in [0x20, 0x2f] {
        assert_eq!(found(device), Some((u64::MAX - 0xfff, u64::MAX)));
    }
    for device in [0, 0x17, 0x19, 0x30] {
        assert_eq!(found(device), None);
    }
    let bytes = table(&ivmd(0x20, 0, 0, 0x1000, 0));
    let ivrs = Ivrs::parse(&bytes).unwrap();
    assert!(ivrs.reserved_for(SourceId::new(0x1234)).is_some());
}

#[test]
fn wrong_headers_are_told_apart() {
    let good = table(&ivhd(0x10, 2, 0x1000, &[]));
    let error = |bytes: &[u8]| Ivrs::parse(bytes).err();
    assert_eq!(error(&good), None);
    assert_eq!(error(&[]), Some(IvrsError::Table(TableError::Signature)));
    assert_eq!(
        error(&good[1..]),
        Some(IvrsError::Table(TableError::Signature))
    );
    assert_eq!(
        error(&good[..71]),
        Some(IvrsError::Table(TableError::Length))
    );
    assert_eq!(
        error(&good[..5]),
        Some(IvrsError::Table(TableError::Length))
    );
    for length in [0u8, 35, 47] {
        let mut short = good.clone();
        short[4] = length;
        assert_eq!(error(&short), Some(IvrsError::Table(TableError::Length)));
    }
    let mut flipped = good.clone();
    flipped[20] ^= 4;
    assert_eq!(
        error(&flipped),
        Some(IvrsError::Table(TableError::Checksum))
    );
}

#[test]
fn blocks_and_entries_cut_short_are_refused_with_their_place() {
    let good = ivhd(0x10, 2, 0x1000, &[]);
    let after = |bad: &[u8]| Ivrs::parse(&table(&[&good, bad].concat())).err();
    let block_error = Some(IvrsError::Block(72));
    assert_eq!(after(&[0x50, 0, 4]), block_error);
    assert_eq!(after(&[0x50, 0, 0, 0]), block_error);
    assert_eq!(after(&[0x50, 0, 5, 0]), block_error);
    for (kind, body) in [(0x10, 19), (0x11, 35), (0x40, 35), (0x21, 27)] {
        assert_eq!(after(&block(kind, 0, &vec![0; body])), block_error);
    }
    let entry_error = Some(IvrsError::Entry(72));
    let start = entry(3, 0x10);
    for entries in [
        &[2, 0, 0][..],
        &[66, 0, 0, 0],
        &[130; 15],
        &[200; 31],
        &[240; 20],
        &[[240; 21].as_slice(), &[9], &[0; 8]].concat(),
        &start,
        &[start, entry(2, 0x20)].concat(),
    ] {
        assert_eq!(
            after(&ivhd(0x40, 3, 0, entries)),
            entry_error,
            "{entries:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Ivrs::parse(&bytes).is_err());
        // With the header right, the blocks are looked at.
        if let Ok(ivrs) = Ivrs::parse(&table(&bytes)) {
            read_all(&ivrs);
        }
    }

    #[test]
    fn any_device_entries_are_parsed_or_refused(
        kind in prop::sample::select(vec![0x10, 0x11, 0x40]),
        entries in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        if let Ok(ivrs) = Ivrs::parse(&table(&ivhd(kind, 2, 0x1000, &entries))) {
            prop_assert!(read_all(&ivrs) <= 1);
        }
    }

    #[test]
    fn a_good_table_with_one_wrong_byte_is_parsed_or_refused(
        at in 0usize..88, value: u8, trailing in 0usize..40,
    ) {
        let entries = [entry(3, 0x10), entry(4, 0x1f), entry(2, 0x28)].concat();
        let mut blocks = [ivhd(0x11, 2, 0x1000, &entries), ivmd(0x20, 0, 0, 1, 2)].concat();
        let at = at % blocks.len();
        blocks[at] = value;
        let mut bytes = table(&blocks);
        bytes.resize(bytes.len() + trailing, 0xff);
        if let Ok(ivrs) = Ivrs::parse(&bytes) {
            prop_assert!(read_all(&ivrs) <= 3);
        }
    }
}
