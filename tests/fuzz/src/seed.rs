//! The VFIO call, byte for byte, against a list of mappings.

use crate::input::Input;
use crate::unit::{FRAMES, with_layer};
use hv_core::{Gpa, PAGE_SIZE};
use iommu::unit::SourceId;
use iommu::vfio::abi::{DIRTY_PAGES, DirtyBitmapHeader, DirtyFlags, DmaMap, MAP_DMA, MapFlags};
use iommu::vfio::seed::{FLAG_GET_DIRTY_BITMAP, UNMAP_DMA_GET_BITMAP, UnmapBitmap};
use iommu::vfio::{CallerMemory, Container, Group, MappingSlot, PinSlot, Resources, Version};
use zerocopy::{FromBytes, IntoBytes};

/// A mapping: first page, count, and whether devices may write.
type Mapped = (u64, u64, bool);

/// Where the caller has its request, which no input names as a bitmap by chance,
/// its bitmap, and the guest's memory.
const REQUEST: u64 = 0x5eed_3b76_1911_0000;
const BITMAP: u64 = 0x2_0000;
const VADDR: u64 = 0x7000_0000_0000;

/// The caller's memory.
struct Caller {
    request: Vec<u8>,
    bitmap: Vec<u8>,
}

impl CallerMemory for Caller {
    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        let (memory, offset) = match at {
            REQUEST.. => (&self.request, at - REQUEST),
            _ => (&self.bitmap, at.checked_sub(BITMAP)?),
        };
        memory.get(offset as usize..)?.get(..len)
    }

    fn bytes_mut(&mut self, at: u64, len: usize) -> Option<&mut [u8]> {
        let (memory, offset) = match at {
            REQUEST.. => (&mut self.request, at - REQUEST),
            _ => (&mut self.bitmap, at.checked_sub(BITMAP)?),
        };
        memory.get_mut(offset as usize..)?.get_mut(..len)
    }

    fn guest_address(&self, vaddr: u64, size: u64) -> Option<Gpa> {
        let gpa = vaddr.checked_sub(VADDR)?;
        let end = gpa.checked_add(size)?;
        (end <= FRAMES * PAGE_SIZE).then(|| Gpa::new(gpa))
    }
}

pub(crate) fn run(input: &[u8]) {
    with_layer(|mut layer, _| {
        let mut mappings = [MappingSlot::default(); 64];
        let mut words = [0; 256];
        let resources = Resources {
            mappings: &mut mappings,
            pins: &mut [] as &mut [PinSlot],
            bitmaps: &mut words,
        };
        let mut container = Container::open(&mut layer, Version::V2, resources).unwrap();
        let device = Group::Device(SourceId::new(8));
        container.attach_group(device).unwrap();
        let mut call = |command, request: Vec<u8>, bitmap: Vec<u8>| {
            let mut caller = Caller { request, bitmap };
            let result = container.ioctl(command, REQUEST, &mut caller, &mut ());
            (result, caller)
        };
        let flags = DirtyFlags::START.bits();
        let start = DirtyBitmapHeader { argsz: 8, flags };
        let (started, _) = call(DIRTY_PAGES, start.as_bytes().to_vec(), Vec::new());
        started.unwrap();

        let mut mapped: Vec<Mapped> = Vec::new();
        let mut input = Input::new(input);
        while !input.is_empty() {
            if input.u8().is_multiple_of(2) {
                let (page, pages) = (u64::from(input.u16()), u64::from(input.u8()) % 32);
                let gfn = u64::from(input.u8()) % FRAMES;
                let access = [
                    MapFlags::READ,
                    MapFlags::WRITE,
                    MapFlags::READ | MapFlags::WRITE,
                ];
                let flags = access[usize::from(input.u8()) % 3];
                let request = DmaMap {
                    argsz: 32,
                    flags: flags.bits(),
                    vaddr: VADDR + gfn * PAGE_SIZE,
                    iova: page * PAGE_SIZE,
                    size: pages * PAGE_SIZE,
                };
                let (result, _) = call(MAP_DMA, request.as_bytes().to_vec(), Vec::new());
                if result.is_ok() {
                    mapped.push((page, pages, flags.contains(MapFlags::WRITE)));
                }
            } else {
                let command = if input.u8() == 0 {
                    0
                } else {
                    UNMAP_DMA_GET_BITMAP
                };
                let bitmap = vec![0; usize::from(input.u16()) % 2048 * 8];
                let before = request(&mut input);
                let (result, caller) = call(command, before.clone(), bitmap);
                if let Err(error) = result {
                    assert!([5, 14, 22, 25, 75].contains(&error.errno()));
                    assert_ne!(error.errno(), 5, "the unit does not fail");
                    assert_eq!(caller.request, before, "a refused request changed");
                    assert!(caller.bitmap.iter().all(|byte| *byte == 0));
                    continue;
                }
                let (asked, _) = UnmapBitmap::read_from_prefix(&before).unwrap();
                let (answer, _) = UnmapBitmap::read_from_prefix(&caller.request).unwrap();
                check(&mut mapped, &asked, answer.size, &caller.bitmap);
            }
        }
    });
}

/// A request of about the right form: small fields, or the bytes as they come.
fn request(input: &mut Input<'_>) -> Vec<u8> {
    if input.u8().is_multiple_of(4) {
        return input.bytes(48).to_vec();
    }
    let header = UnmapBitmap {
        argsz: 32 + u32::from(input.u8() % 16),
        flags: u32::from(input.u8() % 4),
        iova: u64::from(input.u16()) * PAGE_SIZE,
        size: u64::from(input.u16()) * PAGE_SIZE,
        bitmap_size: u64::from(input.u16()) % 8192,
        bitmap: BITMAP + input.u64() % 16,
    };
    header.as_bytes().to_vec()
}

/// Compares what an unmap did with what the list says, and takes it off.
fn check(mapped: &mut Vec<Mapped>, asked: &UnmapBitmap, bytes: u64, bitmap: &[u8]) {
    let first = asked.iova / PAGE_SIZE;
    let pages = asked.size / PAGE_SIZE;
    let (gone, kept): (Vec<Mapped>, _) = mapped
        .drain(..)
        .partition(|(at, count, _)| *at < first + pages && first < at + count);
    *mapped = kept;
    let inside = |(at, count, _): &Mapped| first <= *at && at + count <= first + pages;
    assert!(gone.iter().all(inside), "a mapping was bisected");
    let expected: u64 = gone.iter().map(|(_, count, _)| count * PAGE_SIZE).sum();
    assert_eq!(bytes, expected);
    let mut wanted = vec![0; bitmap.len()];
    let offset = asked.bitmap.wrapping_sub(BITMAP);
    if asked.flags & FLAG_GET_DIRTY_BITMAP != 0 {
        for (at, count, _) in gone.iter().filter(|(_, _, writes)| *writes) {
            for index in at - first..at - first + count {
                wanted[(offset + index / 8) as usize] |= 1 << (index % 8);
            }
        }
    }
    assert_eq!(bitmap, wanted);
}
