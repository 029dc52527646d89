//! The device table entry, its half for DMA: one requester id (AMD IOMMU 3.0, 2.2.2.1
//! "Device Table Entry Format").
//!
//! ```text
//! word 0   63  62  61  60      52 51              12 11   9 8  7 6   2  1   0
//!          | . | IW| IR| guest    | page table root  | Mode | HAD| rsvd| TV| V |
//! word 1   63                       40 39 38 37   33 32 31   16 15           0
//!          | guest tables, SysMgt, ... |EX|SD|  ...  | I| guest | domain id  |
//! word 2   interrupts: see DeviceInterrupts
//! word 3   attribute overrides: none
//! ```
//!
//! An entry with V clear lets every DMA pass untranslated. So there is no absent
//! entry here: a device that shall reach nothing has [`DeviceEntry::Blocked`].

use super::bits::{flag, get, put};

/// What becomes of a device's DMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceEntry {
    /// V = TV = 1, Mode = 0, IR = IW = 0: not translated, and neither read nor
    /// write is permitted.
    Blocked,
    /// V = TV = IR = IW = 1: through a table of [`DeviceEntry::Translated::levels`].
    Translated {
        /// Bits 51:12 of word 0: the root, page aligned.
        root: u64,
        /// Mode, bits 11:9 of word 0: the number of levels, 1 to 6.
        levels: u8,
        /// HAD, bits 8:7 of word 0: 11, the unit sets accessed and dirty bits (needs
        /// [`Features::HOST_DIRTY`](super::Features::HOST_DIRTY) and
        /// [`Features::HOST_ACCESSED`](super::Features::HOST_ACCESSED)); or 00, it sets
        /// neither.
        dirty: bool,
        /// I, bit 32 of word 1: the device may ask for translations, and what it sends as
        /// translated passes as it is. Otherwise either is refused.
        device_tlb: bool,
        /// DomainID, bits 15:0 of word 1: the tag of cached translations.
        domain: u16,
    },
}

/// V and TV: bits 0 and 1 of word 0.
const VALID: u64 = 0b11;
/// HAD: bits 8:7 of word 0.
const HAD: u64 = 0b11 << 7;
/// IR and IW: bits 61 and 62 of word 0.
const ANY_ACCESS: u64 = 0b11 << 61;
/// Bits 51:12 of word 0.
const ROOT: u64 = 0x000f_ffff_ffff_f000;

impl DeviceEntry {
    /// An entry's size in bytes; that of requester id `id` lies at `id * SIZE`.
    pub const SIZE: usize = 32;
    /// The size of a table with an entry for every requester id, in bytes.
    pub const TABLE: usize = Self::SIZE << 16;

    /// Words 0 and 1.
    pub const fn encode(self) -> [u64; 2] {
        match self {
            Self::Blocked => [VALID, 0],
            Self::Translated {
                root,
                levels,
                dirty,
                device_tlb,
                domain,
            } => [
                VALID
                    | ANY_ACCESS
                    | if dirty { HAD } else { 0 }
                    | put(levels as u64, 9, 3)
                    | root & ROOT,
                domain as u64 | put(device_tlb as u64, 32, 1),
            ],
        }
    }

    /// Reads words 0 and 1; `None` for an entry that lets DMA pass, or that this
    /// project does not make.
    pub const fn decode(words: [u64; 2]) -> Option<Self> {
        let [first, second] = words;
        let levels = get(first, 9, 3) as u8;
        let valid = flag(first, 0) && flag(first, 1);
        match (valid, first & ANY_ACCESS, levels) {
            (true, 0, _) => Some(Self::Blocked),
            (true, ANY_ACCESS, 1..=6) => Some(Self::Translated {
                root: first & ROOT,
                levels,
                dirty: first & HAD == HAD,
                device_tlb: flag(second, 32),
                domain: get(second, 0, 16) as u16,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_specification_and_read_back() {
        let entry = DeviceEntry::Translated {
            root: 0x12_3456_7000,
            levels: 3,
            dirty: false,
            device_tlb: false,
            domain: 0x99,
        };
        assert_eq!(entry.encode(), [0x6000_0012_3456_7603, 0x99]);
        let sets_bits = DeviceEntry::Translated {
            root: 0x12_3456_7000,
            levels: 3,
            dirty: true,
            device_tlb: true,
            domain: 0x99,
        };
        let expected = [0x6000_0012_3456_7783, 0x1_0000_0099];
        assert_eq!(sets_bits.encode(), expected);
        assert_eq!(DeviceEntry::Blocked.encode(), [3, 0]);
        for entry in [entry, sets_bits, DeviceEntry::Blocked] {
            assert_eq!(DeviceEntry::decode(entry.encode()), Some(entry));
        }
    }

    #[test]
    fn an_entry_that_lets_dma_pass_is_none_of_ours() {
        assert_eq!(DeviceEntry::decode([0, 0]), None, "V clear");
        assert_eq!(DeviceEntry::decode([3 | ANY_ACCESS, 0]), None, "Mode 0");
        assert_eq!(
            DeviceEntry::decode([1 | ANY_ACCESS | 3 << 9, 0]),
            None,
            "TV clear"
        );
    }
}
