//! Tables of firmware that is broken or lies.

use iommu::dmar::Dmar;
use iommu::ivrs::Ivrs;
use iommu::unit::SourceId;
use strandline_rt::acpi::{DMAR, Tables};
use strandline_rt::physical::{ReadPhys, Unreadable};

pub(crate) fn dmar(input: &[u8]) {
    as_it_is_and_sealed(input, read_dmar);
}

pub(crate) fn ivrs(input: &[u8]) {
    as_it_is_and_sealed(input, read_ivrs);
}

/// The table as it is, and once more with a checksum that is right, so that what
/// is behind it is looked at.
fn as_it_is_and_sealed(input: &[u8], read: fn(&[u8])) {
    read(input);
    let mut sealed = input.to_vec();
    if let Some(length) = sealed.get_mut(4..8) {
        length.copy_from_slice(&(input.len() as u32).to_le_bytes());
    }
    seal(&mut sealed, 9);
    read(&sealed);
}

fn read_dmar(bytes: &[u8]) {
    let Ok(table) = Dmar::parse(bytes) else {
        return;
    };
    let _ = (table.host_address_width(), table.flags());
    let scopes = table.units().flat_map(|unit| unit.scopes());
    let others = table.reserved_regions().flat_map(|region| region.scopes());
    // Every structure takes bytes of the table: the iterators come to an end.
    let found = scopes.chain(others).filter_map(|scope| scope.endpoint());
    assert!(found.count() <= bytes.len());
    for device in [0, 0xf8, u16::MAX] {
        let _ = table.unit_for(0, SourceId::new(device));
    }
}

fn read_ivrs(bytes: &[u8]) {
    let Ok(table) = Ivrs::parse(bytes) else {
        return;
    };
    // Every structure takes bytes of the table: the iterators come to an end.
    let found = table.units().count() + table.reserved_regions().count();
    assert!(found <= bytes.len());
    for device in [0, 0xf8, u16::MAX] {
        let _ = table.unit_for(0, SourceId::new(device));
    }
}

/// Where the input appears in memory.
const BASE: u64 = 0x1000;

/// Memory with the input in it; all else is unreadable.
struct Ram(Vec<u8>);

impl ReadPhys for Ram {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Unreadable> {
        let start = at.checked_sub(BASE).ok_or(Unreadable(at))?;
        let start = usize::try_from(start).map_err(|_| Unreadable(at))?;
        let end = start.checked_add(to.len()).ok_or(Unreadable(at))?;
        to.copy_from_slice(self.0.get(start..end).ok_or(Unreadable(at))?);
        Ok(())
    }
}

/// The root pointer at the start, tables at multiples of 256 bytes.
pub(crate) fn tables(input: &[u8]) {
    let mut memory = input.to_vec();
    for at in (256..memory.len()).step_by(256) {
        let table = &mut memory[at..];
        let length = table.get(4..8).map_or(0, |bytes| {
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        });
        if let Some(table) = table.get_mut(..length as usize) {
            seal(table, 9);
        }
    }
    if let Some(first) = memory.get_mut(..20) {
        seal(first, 8);
    }
    if let Some(whole) = memory.get_mut(..36) {
        seal(whole, 32);
    }
    for memory in [input.to_vec(), memory] {
        let memory = Ram(memory);
        if let Ok(tables) = Tables::new(&memory, Some(BASE)) {
            let _ = tables.pm_timer();
            let mut buffer = [0; 512];
            if let Ok(table) = tables.copy(DMAR, &mut buffer) {
                read_dmar(table);
            }
        }
    }
}

/// Makes the bytes add up to zero with the one at `checksum`.
fn seal(bytes: &mut [u8], checksum: usize) {
    if checksum < bytes.len() {
        bytes[checksum] = 0;
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[checksum] = sum.wrapping_neg();
    }
}
