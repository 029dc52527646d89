//! Requests and the status each is answered with.
//!
//! Virtio 1.2, section 5.13.6 "Device operations". A request has a readable part,
//! laid out below, and a writable one that ends with the status.

use super::features::Features;
use crate::space::Access;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The longest readable part: PROBE's, of which only the front matters.
pub(super) const MAX_REQUEST: usize = 36;

/// How a request ended: `VIRTIO_IOMMU_S_*`. What is not said there is decided
/// where the status is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The request is not where its descriptors say, or cannot be read there.
    IoErr = 1,
    /// Its feature was not negotiated.
    Unsupported = 2,
    /// The host's unit cannot do it.
    DevErr = 3,
    /// A field, or a combination of them, is not allowed.
    Invalid = 4,
    /// An address or a number is out of range or not aligned.
    Range = 5,
    /// There is no such domain or endpoint.
    NoEntry = 6,
    /// The guest has no memory there.
    Fault = 7,
    /// Out of domains, of tables, or of references to a page.
    NoMemory = 8,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// 5.13.6.3
    Attach {
        domain: u32,
        endpoint: u32,
        bypass: bool,
    },
    /// 5.13.6.4
    Detach { domain: u32, endpoint: u32 },
    /// 5.13.6.5; `last` is inclusive.
    Map {
        domain: u32,
        first: u64,
        last: u64,
        physical: u64,
        access: Access,
    },
    /// 5.13.6.6; `last` is inclusive.
    Unmap { domain: u32, first: u64, last: u64 },
    /// 5.13.6.7; `None` if it is too short to name one: its answer is longer than
    /// that of others all the same.
    Probe { endpoint: Option<u32> },
}

/// Why there is nothing to carry out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Of a type nobody knows: the buffer is given back as it is.
    Unrecognised,
    /// Answered with this.
    Status(Status),
}

/// `VIRTIO_IOMMU_T_*`.
const ATTACH: u8 = 1;
const DETACH: u8 = 2;
const MAP: u8 = 3;
const UNMAP: u8 = 4;
const PROBE: u8 = 5;

/// `VIRTIO_IOMMU_ATTACH_F_BYPASS`.
const ATTACH_BYPASS: u32 = 1 << 0;
/// `VIRTIO_IOMMU_MAP_F_READ`.
const MAP_READ: u32 = 1 << 0;
/// `VIRTIO_IOMMU_MAP_F_WRITE`.
const MAP_WRITE: u32 = 1 << 1;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    kind: u8,
    /// Ignored, as the specification wants it.
    _reserved: [u8; 3],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireAttach {
    domain: U32,
    endpoint: U32,
    flags: U32,
    reserved: [u8; 4],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireDetach {
    domain: U32,
    endpoint: U32,
    /// Ignored, as the specification wants it.
    _reserved: [u8; 8],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireMap {
    domain: U32,
    first: U64,
    last: U64,
    physical: U64,
    flags: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireUnmap {
    domain: U32,
    first: U64,
    last: U64,
    reserved: [u8; 4],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireProbe {
    endpoint: U32,
}

impl Request {
    /// Reads the front of a request, under the features the driver accepted.
    ///
    /// # Errors
    /// The type is unknown, which a PROBE is that was not negotiated; MAP and UNMAP
    /// were not negotiated (UNSUPP); the part is too short for the type, a flag is
    /// unknown, or a reserved field that matters is not zero (INVAL).
    pub(super) fn decode(bytes: &[u8], features: Features) -> Result<Self, Refusal> {
        let (head, body) = Head::ref_from_prefix(bytes).map_err(|_| Refusal::Unrecognised)?;
        let needs = match head.kind {
            ATTACH | DETACH => Features::empty(),
            MAP | UNMAP => Features::MAP_UNMAP,
            PROBE if features.contains(Features::PROBE) => Features::empty(),
            _ => return Err(Refusal::Unrecognised),
        };
        if !features.contains(needs) {
            return Err(Refusal::Status(Status::Unsupported));
        }
        let request = match head.kind {
            ATTACH => Self::attach(body, features),
            DETACH => read::<WireDetach>(body).map(|wire| Self::Detach {
                domain: wire.domain.get(),
                endpoint: wire.endpoint.get(),
            }),
            MAP => Self::map(body),
            UNMAP => Self::unmap(body),
            _ => Some(Self::Probe {
                endpoint: read::<WireProbe>(body).map(|wire| wire.endpoint.get()),
            }),
        };
        request.ok_or(Refusal::Status(Status::Invalid))
    }

    fn attach(body: &[u8], features: Features) -> Option<Self> {
        let wire = read::<WireAttach>(body)?;
        let flags = wire.flags.get();
        let known = if features.contains(Features::BYPASS_CONFIG) {
            ATTACH_BYPASS
        } else {
            0
        };
        let is_valid = flags & !known == 0 && wire.reserved == [0; 4];
        is_valid.then_some(Self::Attach {
            domain: wire.domain.get(),
            endpoint: wire.endpoint.get(),
            bypass: flags & ATTACH_BYPASS != 0,
        })
    }

    /// A mapping with neither right is none: like an unknown flag it is invalid.
    fn map(body: &[u8]) -> Option<Self> {
        let wire = read::<WireMap>(body)?;
        let flags = wire.flags.get();
        let access = Access::new(flags & MAP_READ != 0, flags & MAP_WRITE != 0)?;
        (flags & !(MAP_READ | MAP_WRITE) == 0).then_some(Self::Map {
            domain: wire.domain.get(),
            first: wire.first.get(),
            last: wire.last.get(),
            physical: wire.physical.get(),
            access,
        })
    }

    fn unmap(body: &[u8]) -> Option<Self> {
        let wire = read::<WireUnmap>(body)?;
        (wire.reserved == [0; 4]).then_some(Self::Unmap {
            domain: wire.domain.get(),
            first: wire.first.get(),
            last: wire.last.get(),
        })
    }
}

fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Option<&T> {
    T::ref_from_prefix(body).ok().map(|(wire, _)| wire)
}
