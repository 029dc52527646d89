//! The parts of a CPU state that have a structure of their own.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A segment register with its hidden part, or a descriptor table register (where
/// only base and limit count). AMD64 APM volume 2, section 15.5.1 and appendix B.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Bits 55:52 and 47:40 of the descriptor, packed: type 3:0, S 4, DPL 6:5, P 7,
    /// AVL 8, L 9, D/B 10, G 11.
    pub attributes: u16,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// The base address.
    pub base: u64,
}

impl Segment {
    /// The attribute bit L: 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// The attribute bit D/B.
    pub const DEFAULT_32: u16 = 1 << 10;

    /// The attributes of a data segment in real mode: present, writable, accessed.
    pub(super) const REAL_MODE_DATA: u16 = 0x93;
    /// The attributes of the code segment in real mode: present, readable, accessed.
    pub(super) const REAL_MODE_CODE: u16 = 0x9b;

    /// A segment in real mode: 64 KiB from 16 times the selector on.
    pub(super) const fn real_mode(selector: u16, attributes: u16) -> Self {
        Self {
            selector,
            attributes,
            limit: 0xffff,
            base: (selector as u64) << 4,
        }
    }

    pub(super) const fn flat(selector: u16, attributes: u16) -> Self {
        Self {
            selector,
            attributes,
            limit: u32::MAX,
            base: 0,
        }
    }
}

/// An interrupt or exception to be delivered at the next entry. All zero: none.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pending {
    pub(super) kind: u8,
    vector: u8,
    has_error_code: u8,
    reserved: u8,
    error_code: u32,
}

impl Pending {
    /// Nothing to deliver.
    pub const NONE: Self = Self::new(0, 0, None);
    /// Invalid opcode.
    pub const UD: Self = Self::exception(6, None);
    /// General protection with error code 0.
    pub const GP: Self = Self::exception(13, Some(0));

    const INTERRUPT: u8 = 1;
    const NMI: u8 = 2;
    const EXCEPTION: u8 = 3;

    const fn new(kind: u8, vector: u8, error_code: Option<u32>) -> Self {
        let (has_error_code, error_code) = match error_code {
            Some(code) => (1, code),
            None => (0, 0),
        };
        Self {
            kind,
            vector,
            has_error_code,
            reserved: 0,
            error_code,
        }
    }

    /// An external interrupt.
    pub const fn interrupt(vector: u8) -> Self {
        Self::new(Self::INTERRUPT, vector, None)
    }

    /// A non-maskable interrupt.
    pub const fn nmi() -> Self {
        Self::new(Self::NMI, 2, None)
    }

    /// An exception, `vector` below 32.
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        Self::new(Self::EXCEPTION, vector, error_code)
    }

    /// Whether there is nothing to deliver.
    pub fn is_none(&self) -> bool {
        self.kind == 0
    }

    /// Whether this is an external interrupt.
    pub fn is_interrupt(&self) -> bool {
        self.kind == Self::INTERRUPT
    }

    /// Whether this is a non-maskable interrupt.
    pub fn is_nmi(&self) -> bool {
        self.kind == Self::NMI
    }

    /// The vector.
    pub fn vector(&self) -> u8 {
        self.vector
    }

    /// The error code that is pushed, if one is.
    pub fn error_code(&self) -> Option<u32> {
        (self.has_error_code != 0).then_some(self.error_code)
    }

    pub(super) fn is_valid(&self) -> bool {
        let kind_ok = match self.kind {
            0 => self.vector == 0,
            Self::INTERRUPT => self.vector >= 16,
            Self::NMI => self.vector == 2,
            Self::EXCEPTION => self.vector < 32 && self.vector != 2,
            _ => false,
        };
        let code_ok =
            self.has_error_code == 0 || (self.has_error_code == 1 && self.kind == Self::EXCEPTION);
        kind_ok && code_ok && self.reserved == 0
    }
}

/// The x87, MMX and SSE registers as FXSAVE64 stores them (AMD64 APM volume 2,
/// figure 11-7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
pub struct Fx(pub [u8; 512]);

impl Fx {
    const MXCSR: usize = 24;

    /// The state after FNINIT with default SSE control.
    pub const fn reset() -> Self {
        let mut fx = [0; 512];
        (fx[0], fx[1]) = (0x7f, 0x03);
        (fx[Self::MXCSR], fx[Self::MXCSR + 1]) = (0x80, 0x1f);
        Self(fx)
    }

    pub(super) fn mxcsr(&self) -> u32 {
        let byte = |at| u32::from(self.0[Self::MXCSR + at]) << (8 * at);
        byte(0) | byte(1) | byte(2) | byte(3)
    }
}
