//! What differs between the table formats of the vendors: the bits of one entry.

use crate::space::Access;
use hv_core::{Hpa, PAGE_SHIFT, PAGE_SIZE};

/// One leaf, decoded: a run of pages of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Where it points: page aligned, or aligned to its own size above level 1.
    pub hpa: Hpa,
    /// What the mapping allows; kept even while the hardware no longer sees it.
    pub access: Access,
    /// Whether the mapping starts with this leaf.
    pub first: bool,
    /// Whether the mapping ends with this leaf.
    pub last: bool,
}

/// One entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing of ours, whatever bits the hardware may have left there.
    Empty,
    /// A table of the next lower level.
    Table {
        /// Its frame.
        table: Hpa,
        /// How many of its entries are in use, 1 to 512, modulo
        /// [`EntryFormat::live_wraps`].
        live: u64,
    },
    /// A leaf.
    Leaf(Leaf),
}

/// The bits of one vendor's table entries.
///
/// Beside what the hardware reads, an entry holds what the layer has to know
/// about it, in bits that the hardware ignores: a leaf its mapping's boundaries
/// and rights, an entry that points to a table the number of entries in use
/// there. So there is no second structure that could disagree with the tables.
///
/// An entry that lost its access bits ([`EntryFormat::revoked`]) is *detached*:
/// the hardware sees nothing, [`EntryFormat::decode`] still sees it all.
pub trait EntryFormat: Copy {
    /// A leaf in a table of `level`, which is 1 or 2.
    fn leaf(self, level: u8, leaf: Leaf) -> u64;

    /// An entry in a table of `level` (2 or higher) for the `table` below it, of
    /// which `live` entries are in use.
    fn table(self, level: u8, table: Hpa, live: u64) -> u64;

    /// How many bits an address may have in tables of so many levels.
    fn address_bits(self, levels: u8) -> u8 {
        PAGE_SHIFT as u8 + 9 * levels
    }

    /// What `entry` in a table of `level` means to the layer.
    fn decode(self, level: u8, entry: u64) -> Entry;

    /// The bits of a leaf that say that its mapping starts there, and that it ends
    /// there.
    fn boundaries(self) -> [u64; 2];

    /// The bits of an entry that points to a table with `live` entries in use which
    /// say so. No other bits of it depend on their number.
    fn live_bits(self, live: u64) -> u64;

    /// The number modulo which the count of entries in use is kept, a power of two.
    /// Below 513 a count that is 0 leaves open whether the table is empty.
    fn live_wraps(self) -> u64;

    /// A leaf of level 1 like `entry`, for the page `pages` after its own in host
    /// memory. What the hardware noted in it counts as a part of it.
    fn further(self, entry: u64, pages: u64) -> u64 {
        entry.wrapping_add(pages.wrapping_mul(PAGE_SIZE))
    }

    /// Whether the hardware writes entries (accessed and dirty bits), even empty
    /// ones, so that a table without entries is not known to be zero.
    fn hardware_writes(self) -> bool {
        true
    }

    /// Whether the hardware may follow `entry`. Only the access bits count: the
    /// hardware may have set accessed or dirty bits in an empty slot.
    fn is_attached(self, entry: u64) -> bool;

    /// The bits that remain of an entry that is detached. All access rights go at
    /// once, since a leaf still readable could be cached anew by a read.
    fn revoked(self) -> u64;

    /// The bit that hardware sets in a leaf when it first uses it; 0 in a format
    /// without accessed bits.
    fn accessed(self) -> u64 {
        0
    }

    /// The bit that hardware sets in a leaf before it lets a write through; 0 in a
    /// format without dirty bits.
    fn dirty(self) -> u64 {
        0
    }

    /// A bit of a leaf that hardware ignores, in which a harvest keeps the
    /// evidence it took until it may report it; 0 in a format without such bits.
    fn harvested(self) -> u64 {
        0
    }
}
