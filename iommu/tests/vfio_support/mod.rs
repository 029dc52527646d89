//! A container over the model of the hardware, and a caller with memory that can
//! be taken away.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub)]
// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::common::format::Format;
use super::common::unit::Hardware;
use super::common::world::{Config, LARGE, SMALL, device, with_world};
use hv_core::dirty::DirtyLog;
use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, PAGE_SIZE};
use iommu::space::Access;
use iommu::vfio::abi::{
    self, Bitmap, BitmapRange, DirtyBitmapHeader, DirtyFlags, DmaMap, DmaUnmap, MapFlags,
    UnmapFlags,
};
use iommu::vfio::{
    CallerMemory, Container, DeviceAccess, EmulatedDevices, Group, MappingSlot, PinSlot, Resources,
    Version, VfioError,
};
use iommu::{Iova, IovaRange};
use std::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const OK: i32 = 0;
pub const EPERM: i32 = 1;
pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const E2BIG: i32 = 7;
pub const ENOMEM: i32 = 12;
pub const EACCES: i32 = 13;
pub const EFAULT: i32 = 14;
pub const EBUSY: i32 = 16;
pub const EEXIST: i32 = 17;
pub const EINVAL: i32 = 22;
pub const ENOTTY: i32 = 25;
pub const ENOSPC: i32 = 28;
pub const EOVERFLOW: i32 = 75;

pub const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);
pub const RO: MapFlags = MapFlags::READ;

/// The device behind the unit, and the emulated one.
pub const REAL: Group = Group::Device(iommu::unit::SourceId::new(2 << 3));
pub const EMULATED: Group = Group::Emulated(7);

/// Where requests, bitmaps and the guest's memory are for the caller.
pub const ARG: u64 = 0x1_0000;
pub const BITMAP: u64 = 0x2_0000;
pub const VADDR: u64 = 0x7000_0000_0000;
const MEMORY_END: u64 = 0x3_0000;

/// The caller's memory, with a range where nothing and one where only reads work.
pub struct Memory {
    bytes: Vec<u8>,
    pub absent: Option<Range<u64>>,
    pub read_only: Option<Range<u64>>,
    /// No buffer can be at or above this.
    pub limit: u64,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            bytes: vec![0; (MEMORY_END - ARG) as usize],
            absent: None,
            read_only: None,
            limit: 1 << 47,
        }
    }

    pub fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, at: u64, value: &T) {
        let start = (at - ARG) as usize;
        let bytes = value.as_bytes();
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub fn get<T: FromBytes>(&self, at: u64) -> T {
        T::read_from_prefix(&self.bytes[(at - ARG) as usize..])
            .unwrap()
            .0
    }

    pub fn words(&self, at: u64, count: usize) -> Vec<u64> {
        (0..count as u64)
            .map(|index| self.get(at + index * 8))
            .collect()
    }

    fn span(&self, at: u64, len: usize) -> Option<Range<usize>> {
        let end = at.checked_add(len as u64)?;
        let hits = |range: &Range<u64>| range.start < end && at < range.end;
        let exists = ARG <= at && end <= MEMORY_END && !self.absent.as_ref().is_some_and(hits);
        exists.then(|| (at - ARG) as usize..(end - ARG) as usize)
    }
}

impl CallerMemory for Memory {
    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        self.span(at, len).map(|span| &self.bytes[span])
    }

    fn bytes_mut(&mut self, at: u64, len: usize) -> Option<&mut [u8]> {
        let end = at.checked_add(len as u64)?;
        let refused = |range: &Range<u64>| range.start < end && at < range.end;
        if self.read_only.as_ref().is_some_and(refused) {
            return None;
        }
        self.span(at, len).map(|span| &mut self.bytes[span])
    }

    fn is_plausible(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.limit)
    }

    fn guest_address(&self, vaddr: u64, size: u64) -> Option<Gpa> {
        let gpa = vaddr.checked_sub(VADDR)?;
        let first = gpa / PAGE_SIZE;
        let end = first.checked_add(size / PAGE_SIZE)?;
        [SMALL, LARGE]
            .iter()
            .any(|slot| slot.start <= first && end <= slot.end)
            .then(|| Gpa::new(gpa))
    }
}

/// What the emulated device does when it is asked to unpin.
#[derive(Default)]
pub struct Devices {
    /// The ranges it was asked about.
    pub asked: Vec<IovaRange>,
    /// How often it does nothing.
    pub ignores: u32,
    /// What else it pins in answer, once.
    pub pins_in_turn: Option<u64>,
    /// Bytes it writes first, once.
    pub writes_first: Option<u64>,
}

impl EmulatedDevices for Devices {
    fn dma_unmap(&mut self, pages: &mut dyn DeviceAccess, range: IovaRange) {
        self.asked.push(range);
        if self.ignores > 0 {
            self.ignores -= 1;
            return;
        }
        if let Some(page) = self.writes_first.take() {
            pages.write(at(page), &[1]).unwrap();
        }
        pages.unpin_pages(range.start(), range.pages());
        if let Some(page) = self.pins_in_turn.take() {
            let mut frames = [Gfn::new(0)];
            pages
                .pin_pages(EMULATED, at(page), Access::Read, &mut frames)
                .unwrap();
        }
    }
}

pub fn at(page: u64) -> Iova {
    Iova::new(page * PAGE_SIZE)
}

pub fn errno<T>(result: Result<T, VfioError>) -> i32 {
    result.err().map_or(OK, VfioError::errno)
}

/// How much a front is given.
#[derive(Clone, Copy)]
pub struct Given {
    pub version: Version,
    pub mappings: usize,
    pub pins: usize,
    pub words: usize,
    pub world: Config,
}

impl Given {
    pub fn usual() -> Self {
        Self {
            version: Version::V2,
            mappings: 16,
            pins: 16,
            words: 64,
            world: Config::default(),
        }
    }
}

pub struct Front<'c, 'm> {
    pub container: Container<'c, 'm, Arena, &'m Hardware<'m>, Format>,
    pub memory: Memory,
    pub devices: Devices,
    pub hardware: &'m Hardware<'m>,
    pub guest: &'m GuestMemory<'m, Arena>,
    pub log: &'m DirtyLog<'m>,
    /// Whether its unit is lost, so that nothing can be given back.
    pub is_abandoned: bool,
}

/// A front with the device behind the unit attached.
pub fn with_front(test: impl FnOnce(&mut Front<'_, '_>)) {
    with_given(Given::usual(), |front| {
        front.container.attach_group(REAL).unwrap();
        test(front);
    });
}

/// A front with the emulated device only, tracking on.
pub fn with_emulated(test: impl FnOnce(&mut Front<'_, '_>)) {
    with_given(Given::usual(), |front| {
        front.container.attach_group(EMULATED).unwrap();
        front.container.register_device();
        front.track(DirtyFlags::START);
        test(front);
    });
}

/// A front without groups.
pub fn with_given(given: Given, test: impl FnOnce(&mut Front<'_, '_>)) {
    with_world(given.world, |world| {
        assert_eq!(REAL, Group::Device(device(2)));
        let mut iommu = world.iommu;
        iommu.stop_tracking();
        let mut mappings = vec![MappingSlot::default(); given.mappings];
        let mut pins = vec![PinSlot::default(); given.pins];
        let mut words = vec![u64::MAX; given.words];
        let resources = Resources {
            mappings: &mut mappings,
            pins: &mut pins,
            bitmaps: &mut words,
        };
        let mut front = Front {
            container: Container::open(&mut iommu, given.version, resources).unwrap(),
            memory: Memory::new(),
            devices: Devices::default(),
            hardware: world.hardware,
            guest: world.guest,
            log: world.log,
            is_abandoned: false,
        };
        test(&mut front);
        if front.is_abandoned {
            return;
        }
        front.container.close().unwrap();
        assert_eq!(iommu.writable_pages(), 0);
        assert!((0..LARGE.end).all(|gfn| !iommu.is_pinned(Gfn::new(gfn))));
    });
}

impl Front<'_, '_> {
    pub fn ioctl(&mut self, command: u32, arg: u64) -> i32 {
        let result = self
            .container
            .ioctl(command, arg, &mut self.memory, &mut self.devices);
        errno(result)
    }

    pub fn call<T: IntoBytes + Immutable>(&mut self, command: u32, request: &T) -> i32 {
        self.memory.put(ARG, request);
        self.ioctl(command, ARG)
    }

    /// Maps guest frames from `gfn` on.
    pub fn map(&mut self, page: u64, pages: u64, gfn: u64, flags: MapFlags) -> i32 {
        self.call(abi::MAP_DMA, &map_request(page, pages, gfn, flags))
    }

    /// Unmaps; also the size that comes back.
    pub fn unmap(&mut self, page: u64, pages: u64, flags: UnmapFlags) -> (i32, u64) {
        let request = DmaUnmap {
            argsz: 24,
            flags: flags.bits(),
            iova: page * PAGE_SIZE,
            size: pages * PAGE_SIZE,
        };
        let errno = self.call(abi::UNMAP_DMA, &request);
        (errno, self.memory.get::<DmaUnmap>(ARG).size)
    }

    /// Unmaps with a bitmap, whose words were `words` before; also the pages that
    /// were unmapped, and the words afterwards.
    pub fn unmap_bitmap(&mut self, page: u64, pages: u64, words: &mut [u64]) -> (i32, u64) {
        self.memory.put(BITMAP, words);
        self.memory.put(ARG + 24, &bitmap(words.len() as u64 * 8));
        let request = DmaUnmap {
            argsz: 48,
            flags: UnmapFlags::GET_DIRTY_BITMAP.bits(),
            iova: page * PAGE_SIZE,
            size: pages * PAGE_SIZE,
        };
        let errno = self.call(abi::UNMAP_DMA, &request);
        words.copy_from_slice(&self.memory.words(BITMAP, words.len()));
        (
            errno,
            self.memory
                .get::<DmaUnmap>(ARG)
                .size
                .wrapping_div(PAGE_SIZE),
        )
    }

    pub fn track(&mut self, flags: DirtyFlags) -> i32 {
        let flags = flags.bits();
        self.call(abi::DIRTY_PAGES, &DirtyBitmapHeader { argsz: 8, flags })
    }

    /// Fetches the bits into `words`.
    pub fn get_bitmap(&mut self, page: u64, pages: u64, words: &mut [u64]) -> i32 {
        self.memory.put(BITMAP, words);
        let errno = self.get(&range_request(page, pages, words.len() as u64 * 8));
        words.copy_from_slice(&self.memory.words(BITMAP, words.len()));
        errno
    }

    pub fn get(&mut self, range: &BitmapRange) -> i32 {
        self.memory.put(ARG + 8, range);
        let flags = DirtyFlags::GET_BITMAP.bits();
        self.call(abi::DIRTY_PAGES, &DirtyBitmapHeader { argsz: 48, flags })
    }

    /// The dirty pages of a range of at most 64, by bit.
    pub fn dirty(&mut self, page: u64, pages: u64) -> u64 {
        let mut words = [0];
        assert_eq!(self.get_bitmap(page, pages, &mut words), OK);
        words[0]
    }

    pub fn pin(&mut self, page: u64, pages: usize, access: Access) -> i32 {
        let mut frames = vec![Gfn::new(0); pages];
        errno(
            self.container
                .pin_pages(EMULATED, at(page), access, &mut frames),
        )
    }

    pub fn unpin(&mut self, page: u64, pages: u64) -> u64 {
        self.container.unpin_pages(at(page), pages)
    }
}

pub fn map_request(page: u64, pages: u64, gfn: u64, flags: MapFlags) -> DmaMap {
    DmaMap {
        argsz: 32,
        flags: flags.bits(),
        vaddr: VADDR + gfn * PAGE_SIZE,
        iova: page * PAGE_SIZE,
        size: pages * PAGE_SIZE,
    }
}

pub fn bitmap(size: u64) -> Bitmap {
    Bitmap {
        pgsize: PAGE_SIZE,
        size,
        data: BITMAP,
    }
}

pub fn range_request(page: u64, pages: u64, size: u64) -> BitmapRange {
    BitmapRange {
        iova: page * PAGE_SIZE,
        size: pages * PAGE_SIZE,
        bitmap: bitmap(size),
    }
}
