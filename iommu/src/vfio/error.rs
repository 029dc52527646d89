//! Why a call of the front failed, and the errno its users expect.

use crate::layer::MapError;
use crate::pins::CannotPin;
use crate::space::SpaceError;
use crate::unit::UnitError;
use crate::unmap::UnmapError;

/// Why a call was refused. Nothing changed, unless it is [`VfioError::Unit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VfioError {
    /// The command is none of this interface.
    #[error("unknown command")]
    UnknownCommand,
    /// An address is not the caller's memory, or not for this purpose.
    #[error("the caller's memory cannot be accessed")]
    Fault,
    /// `argsz` is less than the structure has.
    #[error("the request is too short")]
    TooShort,
    /// A flag is unknown, missing, or excludes another one.
    #[error("the flags are unknown or exclude each other")]
    Flags,
    /// A range or an array is empty.
    #[error("the range is empty")]
    Empty,
    /// A range goes past 2^64.
    #[error("the range wraps around the end of the address space")]
    Wraps,
    /// An address or a size is not a multiple of the page size.
    #[error("not aligned to the page size")]
    Unaligned,
    /// `iova` and `size` are to be 0 together with `ALL`.
    #[error("a range is given where all is meant")]
    RangeWithAll,
    /// The bitmap is too small, too large, or at no plausible address.
    #[error("the bitmap does not fit the range")]
    BadBitmap,
    /// The bitmap's page size is not the one dirty pages are tracked by.
    #[error("pages of this size are not tracked")]
    PageSize,
    /// The range begins or ends inside a mapping.
    #[error("the range bisects a mapping")]
    Bisects,
    /// Dirty pages are not tracked.
    #[error("dirty pages are not tracked")]
    NotTracking,
    /// The range has addresses that devices cannot use.
    #[error("the range is outside the valid IOVA ranges")]
    OutsideValidRanges,
    /// A range overlaps another one of the same request.
    #[error("the ranges overlap")]
    RangesOverlap,
    /// Some of the range is mapped already.
    #[error("the range overlaps a mapping")]
    Overlap,
    /// There is no mapping whose address could be updated.
    #[error("there is no such mapping")]
    NoMapping,
    /// The page is in no mapping.
    #[error("the address is not mapped")]
    NotMapped,
    /// The mapping is not exactly this one, its address is not invalid, or the new
    /// address is other memory.
    #[error("the mapping's address cannot be updated to this")]
    BadVaddr,
    /// The mapping's address is invalid already.
    #[error("the mapping's address is invalid already")]
    VaddrTwice,
    /// Not possible while the caller's address of a mapping is invalid.
    #[error("the address of a mapping is invalid")]
    VaddrInvalid,
    /// Not possible while the group of an emulated device is attached.
    #[error("an emulated device is attached")]
    EmulatedAttached,
    /// An emulated device did not unpin what is to be unmapped.
    #[error("an emulated device does not unpin its pages")]
    StillPinned,
    /// Not part of version 1 of the interface.
    #[error("version 1 has no such call")]
    Version1,
    /// The mapping does not permit that access.
    #[error("the mapping does not permit this access")]
    Permission,
    /// No emulated device has registered, so none would be told to unpin.
    #[error("no emulated device is registered")]
    NoDevice,
    /// The group is attached already, or it is not attached.
    #[error("the group is attached already, or not at all")]
    BadGroup,
    /// There are as many mappings as there was memory given for.
    #[error("no more mappings")]
    TooManyMappings,
    /// Other memory that was given is used up, or a page is held too often.
    #[error("out of memory")]
    OutOfMemory,
    /// More ranges than can be logged.
    #[error("too many ranges")]
    TooManyRanges,
    /// The device is logging already.
    #[error("the device is logging already")]
    LoggingAlready,
    /// The device is not logging.
    #[error("the device is not logging")]
    NotLogging,
    /// The hardware failed; see [`crate::Iommu`] for what that means.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

impl VfioError {
    /// The positive errno.
    pub const fn errno(self) -> i32 {
        const EPERM: i32 = 1;
        const ENOENT: i32 = 2;
        const EIO: i32 = 5;
        const E2BIG: i32 = 7;
        const ENOMEM: i32 = 12;
        const EACCES: i32 = 13;
        const EFAULT: i32 = 14;
        const EBUSY: i32 = 16;
        const EEXIST: i32 = 17;
        const EINVAL: i32 = 22;
        const ENOTTY: i32 = 25;
        const ENOSPC: i32 = 28;
        const EOVERFLOW: i32 = 75;
        match self {
            Self::UnknownCommand => ENOTTY,
            Self::Fault => EFAULT,
            Self::Wraps => EOVERFLOW,
            Self::Overlap => EEXIST,
            Self::NoMapping => ENOENT,
            Self::VaddrInvalid
            | Self::EmulatedAttached
            | Self::StillPinned
            | Self::LoggingAlready => EBUSY,
            Self::Version1 => EACCES,
            Self::Permission => EPERM,
            Self::TooManyMappings => ENOSPC,
            Self::OutOfMemory => ENOMEM,
            Self::TooManyRanges => E2BIG,
            Self::Unit(_) => EIO,
            Self::TooShort
            | Self::Flags
            | Self::Empty
            | Self::Unaligned
            | Self::RangeWithAll
            | Self::BadBitmap
            | Self::PageSize
            | Self::Bisects
            | Self::NotTracking
            | Self::OutsideValidRanges
            | Self::RangesOverlap
            | Self::NotMapped
            | Self::BadVaddr
            | Self::VaddrTwice
            | Self::NoDevice
            | Self::BadGroup
            | Self::NotLogging => EINVAL,
        }
    }
}

impl From<MapError> for VfioError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::NoDomain | MapError::OutOfRange => Self::OutsideValidRanges,
            MapError::Unaligned => Self::Unaligned,
            MapError::NotGuestMemory => Self::Fault,
            MapError::Overlap => Self::Overlap,
            MapError::TooManyMappings | MapError::OutOfMemory => Self::OutOfMemory,
            MapError::Unit(error) => Self::Unit(error),
        }
    }
}

impl From<UnmapError> for VfioError {
    fn from(error: UnmapError) -> Self {
        match error {
            UnmapError::NoDomain | UnmapError::OutOfRange => Self::OutsideValidRanges,
            UnmapError::Bisects => Self::Bisects,
            UnmapError::NotTracking => Self::NotTracking,
            UnmapError::BitmapTooSmall => Self::BadBitmap,
            UnmapError::Unit(error) => Self::Unit(error),
        }
    }
}

impl From<SpaceError> for VfioError {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::NoDomain | SpaceError::OutOfRange => Self::OutsideValidRanges,
            SpaceError::OutOfMemory => Self::OutOfMemory,
            SpaceError::Unit(error) => Self::Unit(error),
        }
    }
}

impl From<CannotPin> for VfioError {
    fn from(_: CannotPin) -> Self {
        Self::OutOfMemory
    }
}
