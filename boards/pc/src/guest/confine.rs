//! Which remapping unit can confine a device, by what firmware says; or why none can.

use super::build::BuildError;
use iommu::dmar::{Dmar, Drhd};
use iommu::ivrs::{Ivhd, Ivrs};
use iommu::unit::SourceId;

/// The PCI segment of the devices that there are drivers for.
const SEGMENT: u16 = 0;

/// The VT-d unit that translates for `device`.
pub(super) fn vtd_for<'t>(dmar: &Dmar<'t>, device: SourceId) -> Result<Drhd<'t>, BuildError> {
    if let Some(region) = dmar.reserved_for(SEGMENT, device) {
        return Err(BuildError::Reserved { device, region });
    }
    dmar.unit_for(SEGMENT, device).ok_or(BuildError::NoUnit)
}

/// The AMD-Vi unit that translates for `device`, and the requester id under which it
/// sees the device.
pub(super) fn amd_vi_for<'t>(
    ivrs: &Ivrs<'t>,
    device: SourceId,
) -> Result<(Ivhd<'t>, SourceId), BuildError> {
    let found = ivrs.unit_for(SEGMENT, device).ok_or(BuildError::NoUnit)?;
    let (_, seen_as) = found;
    for device in [device, seen_as] {
        if let Some(region) = ivrs.reserved_for(device) {
            return Err(BuildError::Reserved { device, region });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu::reserved::ReservedRegion;

    const DEVICE: SourceId = SourceId::new(0x0010);
    const OTHER: SourceId = SourceId::new(0x0018);

    /// A table of these structures, with a right length and checksum.
    fn table(signature: &[u8; 4], structures: &[&[u8]]) -> Vec<u8> {
        let mut table = vec![0; 48];
        table.extend(structures.concat());
        let length = table.len() as u32;
        table[..4].copy_from_slice(signature);
        table[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = sum.wrapping_neg();
        table
    }

    fn refused(device: SourceId, first: u64, last: u64) -> BuildError {
        let [first, last] = [first, last].map(hv_core::Hpa::new);
        let region = ReservedRegion { first, last };
        BuildError::Reserved { device, region }
    }

    #[test]
    fn a_device_that_firmware_keeps_memory_for_is_refused_on_vtd() {
        // DRHD, INCLUDE_PCI_ALL. RMRR of device 00:02.0.
        let mut drhd = [0; 16];
        (drhd[2], drhd[4]) = (16, 1);
        let mut rmrr = [0; 32];
        (rmrr[0], rmrr[2]) = (1, 32);
        rmrr[8..16].copy_from_slice(&0x7000u64.to_le_bytes());
        rmrr[16..24].copy_from_slice(&0x8fffu64.to_le_bytes());
        rmrr[24..].copy_from_slice(&[1, 8, 0, 0, 0, 0, 2, 0]);
        let bytes = table(b"DMAR", &[&drhd, &rmrr]);
        let dmar = Dmar::parse(&bytes).unwrap();
        assert_eq!(
            vtd_for(&dmar, DEVICE).err(),
            Some(refused(DEVICE, 0x7000, 0x8fff))
        );
        assert!(vtd_for(&dmar, OTHER).is_ok());
        let error = vtd_for(&dmar, DEVICE).err().unwrap().to_string();
        assert!(
            error.contains("00:02.0") && error.contains("0x7000 to 0x8fff"),
            "{error}"
        );
    }

    #[test]
    fn a_device_that_firmware_keeps_memory_for_is_refused_on_amd_vi_by_its_alias_too() {
        // IVHD 10h: all devices, and 00:02.0 as 00:03.0. IVMD 21h of 00:03.0.
        let mut ivhd = [0; 36];
        (ivhd[0], ivhd[2]) = (0x10, 36);
        ivhd[24..28].copy_from_slice(&[1, 0, 0, 0]);
        ivhd[28..].copy_from_slice(&[66, 0x10, 0, 0, 0, 0x18, 0, 0]);
        let mut ivmd = [0; 32];
        (ivmd[0], ivmd[2], ivmd[4]) = (0x21, 32, 0x18);
        ivmd[16..24].copy_from_slice(&0x7000u64.to_le_bytes());
        ivmd[24..].copy_from_slice(&0x2000u64.to_le_bytes());
        let bytes = table(b"IVRS", &[&ivhd, &ivmd]);
        let ivrs = Ivrs::parse(&bytes).unwrap();
        for device in [DEVICE, OTHER] {
            let error = amd_vi_for(&ivrs, device).err();
            assert_eq!(error, Some(refused(OTHER, 0x7000, 0x8fff)));
        }
        assert!(amd_vi_for(&ivrs, SourceId::new(0x0020)).is_ok());
    }
}
