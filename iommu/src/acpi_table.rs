//! What the two ACPI tables of remapping units have in common: the header, and the
//! reading of little-endian fields.

/// Why a table was refused before its contents were looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    /// It does not start with its signature.
    #[error("the table's signature is wrong")]
    Signature,
    /// It says it is shorter than its fixed part, or longer than the memory it is in.
    #[error("the table's length is wrong")]
    Length,
    /// Its bytes do not add up to 0.
    #[error("the table's checksum is wrong")]
    Checksum,
}

/// The table at the start of `bytes`, which may be longer than it: the part of
/// `fixed` bytes, and the rest.
pub(crate) fn parse<'t>(
    bytes: &'t [u8],
    signature: &[u8; 4],
    fixed: usize,
) -> Result<(&'t [u8], &'t [u8]), TableError> {
    if bytes.get(..4) != Some(signature) {
        return Err(TableError::Signature);
    }
    let table = u32_at(bytes, 4)
        .and_then(|length| bytes.get(..usize::try_from(length).ok()?))
        .ok_or(TableError::Length)?;
    let parts = table.split_at_checked(fixed).ok_or(TableError::Length)?;
    let sum = |sum: u8, byte: &u8| sum.wrapping_add(*byte);
    if table.iter().fold(0, sum) != 0 {
        return Err(TableError::Checksum);
    }
    Ok(parts)
}

pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
