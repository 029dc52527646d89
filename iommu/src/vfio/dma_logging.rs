//! A device that logs its own DMA (section G of the rules).
//!
//! `VFIO_DEVICE_FEATURE` with `DMA_LOGGING_START`, `_STOP` and `_REPORT`, for a
//! device that the hypervisor emulates: the device notes what it writes, in the
//! ranges its user asked about, and the user fetches that. It is a call on the
//! device's file, so it knows nothing of containers and mappings.

use super::VfioError;
use super::caller::{CallerMemory, behind, read, write};
use crate::DirtyBitmap;
use bitflags::bitflags;
use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;
use bitvec::view::BitView;
use heapless::Vec;
use hv_core::{PAGE_SHIFT, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_FEATURE`: `_IO(';', 100 + 17)`, on a device's file.
pub const DEVICE_FEATURE: u32 = 0x3b75;
/// How many ranges may be logged: what a page holds.
pub const MAX_RANGES: usize = 256;

/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`.
pub const START: u32 = 6;
/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`.
pub const STOP: u32 = 7;
/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`.
pub const REPORT: u32 = 8;

bitflags! {
    /// What is asked of a feature; its number is in the low 16 bits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FeatureFlags: u32 {
        /// Data comes from the device.
        const GET = 1 << 16;
        /// Data goes to the device.
        const SET = 1 << 17;
        /// Only whether the rest would be possible is asked.
        const PROBE = 1 << 18;
        /// The feature's number.
        const NUMBER = 0xffff;
    }
}

/// `struct vfio_device_feature`, without its `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FeatureHeader {
    /// The size of the structure and its `data` as the caller knows it.
    pub argsz: u32,
    /// [`FeatureFlags`].
    pub flags: u32,
}

/// `struct vfio_device_feature_dma_logging_control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Control {
    /// In: the page size wished for. Out: the one there is.
    pub page_size: u64,
    /// The number of ranges.
    pub num_ranges: u32,
    /// Zero.
    pub reserved: u32,
    /// The caller's address of an array of [`LoggingRange`].
    pub ranges: u64,
}

/// `struct vfio_device_feature_dma_logging_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoggingRange {
    /// The first IOVA.
    pub iova: u64,
    /// In bytes.
    pub length: u64,
}

/// `struct vfio_device_feature_dma_logging_report`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Report {
    /// The first IOVA.
    pub iova: u64,
    /// In bytes.
    pub length: u64,
    /// How many bytes a bit stands for.
    pub page_size: u64,
    /// The caller's address of the bitmap, in which bits are set, never cleared.
    pub bitmap: u64,
}

/// A range that is logged, and where its bits begin.
#[derive(Debug)]
struct Logged {
    first: u64,
    last: u64,
    first_word: usize,
}

impl Logged {
    fn first_page(&self) -> u64 {
        self.first >> PAGE_SHIFT
    }

    fn pages(&self) -> u64 {
        (self.last >> PAGE_SHIFT) - self.first_page() + 1
    }
}

/// The log of one device.
#[derive(Debug)]
pub struct DmaLogging<'m> {
    words: &'m mut [u64],
    /// Empty while the device does not log.
    ranges: Vec<Logged, MAX_RANGES>,
}

impl<'m> DmaLogging<'m> {
    /// A log in `words`, one for each 64 pages begun of each range. Not started.
    pub fn new(words: &'m mut [u64]) -> Self {
        Self {
            words,
            ranges: Vec::new(),
        }
    }

    /// Whether the device logs.
    pub fn is_active(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// The device wrote `len` bytes at `iova`, and they are visible.
    pub fn record(&mut self, iova: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|more| iova.saturating_add(more)) else {
            return;
        };
        for range in &self.ranges {
            let (first, last) = (iova.max(range.first), last.min(range.last));
            if first > last {
                continue;
            }
            let bit = |at: u64| ((at >> PAGE_SHIFT) - range.first_page()) as usize;
            if let Some(bits) = bits(self.words, range).get_mut(bit(first)..=bit(last)) {
                bits.fill(true);
            }
        }
    }

    /// Does `DEVICE_FEATURE`: `arg` is the structure's address in `memory`.
    ///
    /// # Errors
    /// [`VfioError::UnknownCommand`] for features other than logging; the others
    /// as rule G1 has them. Nothing changes.
    pub fn feature(&mut self, arg: u64, memory: &mut impl CallerMemory) -> Result<(), VfioError> {
        let header: FeatureHeader = read(memory, arg)?;
        if (header.argsz as usize) < size_of::<FeatureHeader>() {
            return Err(VfioError::TooShort);
        }
        let flags = FeatureFlags::from_bits(header.flags).ok_or(VfioError::Flags)?;
        let both = FeatureFlags::GET | FeatureFlags::SET;
        if flags.contains(both) && !flags.contains(FeatureFlags::PROBE) {
            return Err(VfioError::Flags);
        }
        let (direction, data_bytes) = match flags.intersection(FeatureFlags::NUMBER).bits() {
            START => (FeatureFlags::SET, size_of::<Control>()),
            STOP => (FeatureFlags::SET, 0),
            REPORT => (FeatureFlags::GET, size_of::<Report>()),
            _ => return Err(VfioError::UnknownCommand),
        };
        if flags.intersects(both.difference(direction)) {
            return Err(VfioError::Flags);
        }
        if flags.contains(FeatureFlags::PROBE) {
            return Ok(());
        }
        if !flags.contains(direction) {
            return Err(VfioError::Flags);
        }
        if (header.argsz as usize) < size_of::<FeatureHeader>() + data_bytes {
            return Err(VfioError::TooShort);
        }
        let data = behind(arg, size_of::<FeatureHeader>())?;
        match flags.intersection(FeatureFlags::NUMBER).bits() {
            START => self.start(data, memory),
            STOP => {
                self.ranges.clear();
                Ok(())
            }
            _ => self.report(data, memory),
        }
    }

    fn start(&mut self, data: u64, memory: &mut impl CallerMemory) -> Result<(), VfioError> {
        let control: Control = read(memory, data)?;
        match control.num_ranges as usize {
            0 => return Err(VfioError::Empty),
            count if count > MAX_RANGES => return Err(VfioError::TooManyRanges),
            _ => {}
        }
        let mut ranges = Vec::<Logged, MAX_RANGES>::new();
        let mut used_words = 0;
        for index in 0..control.num_ranges as usize {
            let at = behind(control.ranges, index * size_of::<LoggingRange>())?;
            let asked: LoggingRange = read(memory, at)?;
            let range = checked(asked, control.page_size, used_words)?;
            let meets = |other: &Logged| other.first <= range.last && range.first <= other.last;
            if ranges.iter().any(meets) {
                return Err(VfioError::RangesOverlap);
            }
            used_words = usize::try_from(DirtyBitmap::words_needed(range.pages()))
                .ok()
                .and_then(|words| words.checked_add(used_words))
                .ok_or(VfioError::OutOfMemory)?;
            ranges.push(range).map_err(|_| VfioError::TooManyRanges)?;
        }
        if self.is_active() {
            return Err(VfioError::LoggingAlready);
        }
        let words = self
            .words
            .get_mut(..used_words)
            .ok_or(VfioError::OutOfMemory)?;
        // Before anything starts, so that there is nothing to stop if it fails.
        let page_size = PAGE_SIZE;
        write(
            memory,
            data,
            &Control {
                page_size,
                ..control
            },
        )?;
        words.fill(0);
        self.ranges = ranges;
        Ok(())
    }

    /// Reports and forgets, once it is sure that the report arrives.
    fn report(&mut self, data: u64, memory: &mut impl CallerMemory) -> Result<(), VfioError> {
        let report: Report = read(memory, data)?;
        if report.page_size < PAGE_SIZE || !report.page_size.is_power_of_two() {
            return Err(VfioError::PageSize);
        }
        let Some(more) = report.length.checked_sub(1) else {
            return Ok(());
        };
        let last = report.iova.checked_add(more).ok_or(VfioError::Wraps)?;
        if !self.is_active() {
            return Err(VfioError::NotLogging);
        }
        let pages = report.length.div_ceil(report.page_size);
        let mut bitmap = usize::try_from(DirtyBitmap::words_needed(pages) * 8)
            .ok()
            .and_then(|bytes| memory.bytes_mut(report.bitmap, bytes))
            .map(DirtyBitmap::from_bytes)
            .ok_or(VfioError::Fault)?;
        let asked = report.iova >> PAGE_SHIFT..=last >> PAGE_SHIFT;
        for range in &self.ranges {
            let first = *asked.start().max(&range.first_page());
            let last = *asked.end().min(&(range.last >> PAGE_SHIFT));
            if first > last {
                continue;
            }
            let start = (first - range.first_page()) as usize;
            let end = (last - range.first_page()) as usize;
            let Some(bits) = bits(self.words, range).get_mut(start..=end) else {
                continue;
            };
            for offset in bits.iter_ones() {
                let at = (first + offset as u64) << PAGE_SHIFT;
                bitmap.set(at.saturating_sub(report.iova) / report.page_size, 1);
            }
            bits.fill(false);
        }
        Ok(())
    }
}

/// `asked`, with bits from `first_word` on, if it can be logged.
fn checked(asked: LoggingRange, page_size: u64, first_word: usize) -> Result<Logged, VfioError> {
    if !page_size.is_power_of_two()
        || !asked.iova.is_multiple_of(page_size)
        || !asked.length.is_multiple_of(page_size)
    {
        return Err(VfioError::Unaligned);
    }
    let more = asked.length.checked_sub(1).ok_or(VfioError::Empty)?;
    let last = asked.iova.checked_add(more).ok_or(VfioError::Wraps)?;
    Ok(Logged {
        first: asked.iova,
        last,
        first_word,
    })
}

fn bits<'w>(words: &'w mut [u64], range: &Logged) -> &'w mut BitSlice<u64, Lsb0> {
    let pages = range.pages() as usize;
    let end = range.first_word + DirtyBitmap::words_needed(range.pages()) as usize;
    let words = words.get_mut(range.first_word..end).unwrap_or_default();
    let bits = words.view_bits_mut::<Lsb0>();
    let pages = pages.min(bits.len());
    &mut bits[..pages]
}
