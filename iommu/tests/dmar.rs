//! The DMAR parser against tables good and bad.

use hv_core::{Gpa, Hpa};
use iommu::acpi_table::TableError;
use iommu::dmar::{DeviceScope, Dmar, DmarError, DmarFlags, GuestUnit};
use iommu::reserved::ReservedRegion;
use iommu::unit::SourceId;
use proptest::prelude::*;

/// A table of these structures with a right header and checksum.
fn table(structures: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table.extend_from_slice(structures);
    let length = table.len() as u32;
    table[..4].copy_from_slice(b"DMAR");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[36..38].copy_from_slice(&[38, 0b11]);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((body.len() as u16 + 4).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn drhd(flags: u8, base: u64, scopes: &[u8]) -> Vec<u8> {
    structure(
        0,
        &[&[flags, 0, 0, 0], &base.to_le_bytes()[..], scopes].concat(),
    )
}

fn rmrr(base: u64, limit: u64, scopes: &[u8]) -> Vec<u8> {
    let [base, limit] = [base, limit].map(u64::to_le_bytes);
    structure(1, &[&[0; 4], &base[..], &limit[..], scopes].concat())
}

/// Reads everything there is to read.
fn read_all(dmar: &Dmar<'_>) -> usize {
    let of_units = dmar.units().flat_map(|unit| unit.scopes());
    let of_regions = dmar.reserved_regions().flat_map(|region| region.scopes());
    of_units
        .chain(of_regions)
        .filter(|scope| scope.endpoint().is_some())
        .count()
}

#[test]
fn units_scopes_and_regions_are_found_and_other_structures_skipped() {
    let endpoint = [1, 8, 0, 0, 0, 0, 2, 0];
    let behind_bridge = [1, 10, 0, 0, 0, 0, 0x1c, 0, 0, 0];
    let ioapic = [3, 8, 0, 0, 9, 0xf0, 0x1f, 7];
    let bytes = table(
        &[
            drhd(0, 0xfed9_0000, &endpoint),
            structure(2, &[1, 2, 3]),
            drhd(1, 0xfed9_1000, &[&ioapic[..], &behind_bridge].concat()),
            rmrr(0x7b80_0000, 0x7fff_ffff, &endpoint),
        ]
        .concat(),
    );
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.host_address_width(), 39);
    assert_eq!(
        dmar.flags(),
        DmarFlags::INTERRUPT_REMAPPING | DmarFlags::X2APIC_OPT_OUT
    );
    let units: Vec<_> = dmar.units().collect();
    assert_eq!(units.len(), 2);
    assert!(!units[0].include_all && units[0].registers == Hpa::new(0xfed9_0000));
    let graphics = SourceId::new(0x0010);
    assert_eq!(units[0].scopes().next().unwrap().endpoint(), Some(graphics));
    let scopes: Vec<_> = units[1].scopes().collect();
    assert_eq!((scopes[0].kind, scopes[0].enumeration_id), (3, 9));
    assert_eq!(scopes[1].path, [[0x1c, 0], [0, 0]]);
    assert!(scopes.iter().all(|scope| scope.endpoint().is_none()));
    let region = dmar.reserved_regions().next().unwrap();
    assert_eq!(region.limit, Hpa::new(0x7fff_ffff));
    let unit_for = |segment, device| dmar.unit_for(segment, device).map(|unit| unit.registers);
    assert_eq!(unit_for(0, graphics), Some(Hpa::new(0xfed9_0000)));
    let other = SourceId::new(0x0018);
    assert_eq!(unit_for(0, other), Some(Hpa::new(0xfed9_1000)));
    assert_eq!(unit_for(1, other), None);
}

#[test]
fn wrong_headers_are_told_apart() {
    let good = table(&drhd(1, 0xfed9_0000, &[]));
    let error = |bytes: &[u8]| Dmar::parse(bytes).err();
    assert_eq!(error(&good), None);
    assert_eq!(error(&[]), Some(DmarError::Table(TableError::Signature)));
    assert_eq!(
        error(&good[1..]),
        Some(DmarError::Table(TableError::Signature))
    );
    assert_eq!(
        error(&good[..63]),
        Some(DmarError::Table(TableError::Length))
    );
    assert_eq!(
        error(&good[..5]),
        Some(DmarError::Table(TableError::Length))
    );
    for length in [0u8, 35, 47] {
        let mut short = good.clone();
        short[4] = length;
        assert_eq!(error(&short), Some(DmarError::Table(TableError::Length)));
    }
    let mut flipped = good.clone();
    flipped[20] ^= 4;
    assert_eq!(
        error(&flipped),
        Some(DmarError::Table(TableError::Checksum))
    );
}

#[test]
fn structures_and_scopes_of_wrong_length_are_refused_with_their_place() {
    let good = drhd(1, 0xfed9_0000, &[]);
    let after = |bad: &[u8]| Dmar::parse(&table(&[&good, bad].concat())).err();
    let structure_error = Some(DmarError::Structure(64));
    // No room for a header; zero and three bytes long; past the end; a unit and a
    // region without all their fields.
    assert_eq!(after(&[2, 0, 4]), structure_error);
    assert_eq!(after(&[9, 0, 0, 0]), structure_error);
    assert_eq!(after(&[9, 0, 3, 0]), structure_error);
    assert_eq!(after(&[9, 0, 5, 0]), structure_error);
    assert_eq!(after(&structure(0, &[0; 11])), structure_error);
    assert_eq!(after(&structure(1, &[0; 19])), structure_error);
    let scope_error = Some(DmarError::Scope(64));
    for scope in [
        &[1][..],
        &[1, 0],
        &[1, 5, 0, 0, 0],
        &[1, 7, 0, 0, 0, 0, 0],
        &[1, 8, 0, 0, 0, 0],
    ] {
        assert_eq!(after(&drhd(0, 0, scope)), scope_error);
        assert_eq!(after(&rmrr(0, 0, scope)), scope_error);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Dmar::parse(&bytes).is_err());
        // With the header right, the structures are looked at.
        if let Ok(dmar) = Dmar::parse(&table(&bytes)) {
            read_all(&dmar);
        }
    }

    #[test]
    fn a_good_table_with_one_wrong_byte_is_parsed_or_refused(
        at in 0usize..60, value: u8, trailing in 0usize..40,
    ) {
        let endpoint = [1, 8, 0, 0, 0, 0, 2, 0];
        let mut structures = [
            drhd(1, 0xfed9_0000, &endpoint), rmrr(0x1000, 0x1fff, &endpoint), structure(2, &[]),
        ].concat();
        structures[at] = value;
        let mut bytes = table(&structures);
        bytes.resize(bytes.len() + trailing, 0xff);
        if let Ok(dmar) = Dmar::parse(&bytes) {
            prop_assert!(read_all(&dmar) <= 2);
        }
    }

    #[test]
    fn what_a_guest_is_told_reads_back(
        page in 0u64..1 << 52, width in 1u8..=64, interrupt_remapping: bool,
    ) {
        let registers = Gpa::new(page << 12);
        let host_address_width = width;
        let bytes = GuestUnit { registers, host_address_width, interrupt_remapping }.table();
        let dmar = Dmar::parse(&bytes).unwrap();
        prop_assert_eq!(dmar.host_address_width(), width);
        let told = dmar.flags() == DmarFlags::INTERRUPT_REMAPPING;
        prop_assert!(told == interrupt_remapping && (told || dmar.flags().is_empty()));
        prop_assert_eq!(dmar.units().count(), 1);
        prop_assert_eq!(dmar.reserved_regions().count(), 0);
        let unit = dmar.unit_for(0, SourceId::new(0x0018)).unwrap();
        prop_assert_eq!(unit.registers.raw(), registers.raw());
        // Without it no kernel has the I/O APIC's interrupts remapped.
        let mut scopes = unit.scopes();
        let ioapic = DeviceScope { kind: 3, enumeration_id: 0, start_bus: 0xf0, path: &[[0x1f, 0]] };
        prop_assert_eq!(scopes.next(), Some(ioapic));
        prop_assert_eq!(scopes.next(), None);
    }
}

#[test]
fn a_device_that_may_lie_behind_a_named_bridge_has_no_unit() {
    let bridge = [2, 8, 0, 0, 0, 0, 0x1c, 0];
    let two_hops = [1, 10, 0, 0, 0, 0, 0x1c, 0, 0, 0];
    let ioapic = [3, 8, 0, 0, 9, 0xf0, 0x1f, 7];
    let behind = SourceId::new(0x0100);
    let on_bus_0 = SourceId::new(0x0010);
    for (scope, is_found) in [(&bridge[..], false), (&two_hops, false), (&ioapic, true)] {
        let bytes = table(&[drhd(0, 0xfed9_0000, scope), drhd(1, 0xfed9_1000, &[])].concat());
        let dmar = Dmar::parse(&bytes).unwrap();
        let base = |device| dmar.unit_for(0, device).map(|unit| unit.registers);
        let for_the_rest = Hpa::new(0xfed9_1000);
        assert_eq!(base(behind), is_found.then_some(for_the_rest));
        assert_eq!(base(on_bus_0), Some(for_the_rest));
    }
}

#[test]
fn reserved_memory_is_found_for_each_device_that_may_use_it() {
    let endpoint = [1, 8, 0, 0, 0, 0, 2, 0];
    let behind_bridge = [1, 10, 0, 0, 0, 0, 0x1c, 0, 0, 0];
    let ioapic = [3, 8, 0, 0, 9, 0xf0, 0x1f, 7];
    let named = SourceId::new(0x0010);
    let region = Some(ReservedRegion {
        first: Hpa::new(0x7000),
        last: Hpa::new(0x8fff),
    });
    let bytes = table(&rmrr(0x7000, 0x8fff, &[&ioapic[..], &endpoint].concat()));
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.reserved_for(0, named), region);
    for (segment, device) in [(1, 0x0010), (0, 0x0011), (0, 0x0110), (0, 0xf0ff)] {
        assert_eq!(dmar.reserved_for(segment, SourceId::new(device)), None);
    }
    let bytes = table(&rmrr(0x7000, 0x8fff, &behind_bridge));
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(
        dmar.reserved_for(0, named),
        None,
        "bus 0 is behind no bridge"
    );
    assert_eq!(dmar.reserved_for(0, SourceId::new(0x0110)), region);
}
