//! What the ACPI tables of IOMMUs have in common: the header, and the reading of
//! little-endian fields.

/// Bytes of the header that every table has.
pub(crate) const HEADER: usize = 36;

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

/// The table at the start of `bytes`, which may be longer than it. It has at least
/// the `fixed` bytes.
pub(crate) fn checked<'t>(
    bytes: &'t [u8],
    signature: &[u8; 4],
    fixed: usize,
) -> Result<&'t [u8], TableError> {
    if bytes.get(..4) != Some(signature) {
        return Err(TableError::Signature);
    }
    let table = u32_at(bytes, 4)
        .and_then(|length| bytes.get(..usize::try_from(length).ok()?))
        .filter(|table| table.len() >= fixed)
        .ok_or(TableError::Length)?;
    if sum(table) != 0 {
        return Err(TableError::Checksum);
    }
    Ok(table)
}

/// As [`checked`], in two: the `fixed` bytes, and what is behind them.
pub(crate) fn parse<'t>(
    bytes: &'t [u8],
    signature: &[u8; 4],
    fixed: usize,
) -> Result<(&'t [u8], &'t [u8]), TableError> {
    checked(bytes, signature, fixed).map(|table| table.split_at(fixed))
}

/// Fills in the header of a table whose body is complete: all but what belongs to
/// its kind.
pub(crate) fn finish<const SIZE: usize>(
    mut table: [u8; SIZE],
    signature: &[u8; 4],
    revision: u8,
) -> [u8; SIZE] {
    let length = const {
        assert!(SIZE >= HEADER && SIZE <= u32::MAX as usize);
        SIZE as u32
    };
    table[..4].copy_from_slice(signature);
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[8] = revision;
    // OEM id, OEM table id, OEM revision, creator id, creator revision.
    table[10..HEADER].copy_from_slice(b"STRANDSTRANDLN\x01\x00\x00\x00STRL\x01\x00\x00\x00");
    table[9] = 0;
    table[9] = sum(&table).wrapping_neg();
    table
}

/// The sum of all bytes, which is 0 in a table with its checksum.
fn sum(table: &[u8]) -> u8 {
    table
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
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
