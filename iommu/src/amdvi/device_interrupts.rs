//! The interrupt half of the device table entry: its word 2 (AMD IOMMU 3.0, 2.2.2.1
//! "Device Table Entry Format", bits 191:128).
//!
//! ```text
//!  63   62   61  60 59  58   57   56 55 52 51                   6  5  4         1  0
//! |Lint1|Lint0|IntCtl|. |NMI|EInt|Init|rsvd| interrupt table root |IG| IntTabLen | IV|
//! ```
//!
//! With IV clear every request passes as it is. So an entry of a unit that remaps has
//! IV set for every device, and passes none of the kinds that are not looked up in the
//! table: NMIPass, EIntPass, INITPass, Lint0Pass and Lint1Pass are clear. Firmware may
//! recommend them for a legacy bridge (IVHD, "DTE Setting"); nobody here waits for what
//! such a one sends. IG = 0: what is refused is logged.

use super::bits::flag;

/// What becomes of a device's interrupt requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceInterrupts {
    /// IV = 0: they pass as they are.
    Unremapped,
    /// IV = 1, IntCtl = 00: each is answered with a target abort.
    Blocked,
    /// IV = 1, IntCtl = 10: looked up in a table of [`DeviceInterrupts::ENTRIES`].
    Remapped {
        /// Interrupt table root, bits 51:6: its address, a multiple of 128 at least (64
        /// would do for entries of 32 bits).
        table: u64,
    },
}

/// IV: bit 0.
const VALID: u64 = 1;
/// IntCtl = 10, bits 61:60.
const REMAPPED: u64 = 0b10 << 60;
/// IntTabLen, bits 4:1: the table has 2^9 entries.
const LENGTH: u64 = 9 << 1;
/// Bits 51:6.
const ROOT: u64 = 0x000f_ffff_ffff_ffc0;

impl DeviceInterrupts {
    /// How many entries a table has: as many as a request can name, so that none can
    /// name one beyond it. QEMU's unit does not look at IntTabLen.
    pub const ENTRIES: u16 = 512;

    /// Word 2.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Unremapped => 0,
            Self::Blocked => VALID,
            Self::Remapped { table } => VALID | LENGTH | REMAPPED | table & ROOT,
        }
    }

    /// Reads word 2; `None` for one that this project does not make.
    pub const fn decode(word: u64) -> Option<Self> {
        let table = word & ROOT;
        match word & !ROOT {
            _ if !flag(word, 0) => Some(Self::Unremapped),
            VALID if table == 0 => Some(Self::Blocked),
            rest if rest == VALID | LENGTH | REMAPPED => Some(Self::Remapped { table }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMAPPED: DeviceInterrupts = DeviceInterrupts::Remapped {
        table: 0x12_3456_7000,
    };

    #[test]
    fn words_have_the_bits_of_the_specification_and_read_back() {
        assert_eq!(DeviceInterrupts::Blocked.encode(), 1);
        assert_eq!(REMAPPED.encode(), 0x2000_0012_3456_7013);
        for interrupts in [
            DeviceInterrupts::Unremapped,
            DeviceInterrupts::Blocked,
            REMAPPED,
        ] {
            let word = interrupts.encode();
            assert_eq!(DeviceInterrupts::decode(word), Some(interrupts));
        }
    }

    #[test]
    fn a_word_that_lets_anything_else_pass_is_none_of_ours() {
        for bit in (1..6).chain(52..64) {
            let word = REMAPPED.encode() ^ 1 << bit;
            assert_eq!(DeviceInterrupts::decode(word), None, "bit {bit}");
        }
    }
}
