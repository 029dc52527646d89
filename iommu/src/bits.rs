//! Bit fields of 64-bit words.

/// The `width` bits of `word` from bit `low` on; `low + width` is 64 at the most.
pub(crate) const fn get(word: u64, low: u32, width: u32) -> u64 {
    (word >> low) & mask(width)
}

/// `value` as a field of `width` bits from bit `low` on. Bits of `value` that do
/// not fit are cut off.
pub(crate) const fn put(value: u64, low: u32, width: u32) -> u64 {
    (value & mask(width)) << low
}

/// Bit `at` of `word`.
pub(crate) const fn flag(word: u64, at: u32) -> bool {
    (word >> at) & 1 != 0
}

/// The bits of a page aligned address that a unit with `width` address bits has
/// to find zero: all from `width` on. The twelve low ones are other fields.
pub(crate) const fn beyond_width(width: u8) -> u64 {
    if width >= 64 { 0 } else { u64::MAX << width }
}

/// The low and the high half of a 128-bit structure.
pub(crate) const fn halves(raw: u128) -> (u64, u64) {
    (raw as u64, (raw >> 64) as u64)
}

/// The 128-bit structure of these halves.
pub(crate) const fn join(low: u64, high: u64) -> u128 {
    (low as u128) | ((high as u128) << 64)
}

const fn mask(width: u32) -> u64 {
    if width >= 64 {
        u64::MAX
    } else {
        (1 << width) - 1
    }
}
