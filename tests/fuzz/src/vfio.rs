//! Every call of the VFIO front in any order, and what devices do meanwhile.

use crate::input::Input;
use crate::unit::{FRAMES, with_layer};
use hv_core::{Gfn, Gpa, PAGE_SIZE};
use iommu::space::Access;
use iommu::unit::SourceId;
use iommu::vfio::abi::{
    Bitmap, BitmapRange, CHECK_EXTENSION, DIRTY_PAGES, DirtyBitmapHeader, DmaMap, DmaUnmap,
    GET_INFO, MAP_DMA, UNMAP_DMA,
};
use iommu::vfio::seed::UNMAP_DMA_GET_BITMAP;
use iommu::vfio::{
    CallerMemory, Container, DeviceAccess, EmulatedDevices, Group, MappingSlot, PinSlot, Resources,
    Version,
};
use iommu::{Iova, IovaRange};
use zerocopy::{Immutable, IntoBytes};

/// Where the caller's memory is, where in it its bitmaps are, and how much it has.
const MEMORY: u64 = 0x10_0000;
const BITMAP: u64 = MEMORY + 0x100;
const BYTES: usize = 0x400;

const GROUPS: [Group; 4] = [
    Group::Device(SourceId::new(8)),
    Group::Device(SourceId::new(9)),
    Group::Emulated(1),
    Group::Emulated(2),
];

/// The caller's memory, which holds its request at the start. Guest addresses are
/// its own.
struct Caller(Vec<u8>);

impl Caller {
    fn with(request: &[u8]) -> Self {
        let mut memory = vec![0x5a; BYTES];
        memory[..request.len()].copy_from_slice(request);
        Self(memory)
    }
}

impl CallerMemory for Caller {
    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        let offset = usize::try_from(at.checked_sub(MEMORY)?).ok()?;
        self.0.get(offset..)?.get(..len)
    }

    fn bytes_mut(&mut self, at: u64, len: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(at.checked_sub(MEMORY)?).ok()?;
        self.0.get_mut(offset..)?.get_mut(..len)
    }

    fn guest_address(&self, vaddr: u64, size: u64) -> Option<Gpa> {
        let end = vaddr.checked_add(size)?;
        (end <= FRAMES * PAGE_SIZE).then(|| Gpa::new(vaddr))
    }
}

/// Emulated devices that unpin what they are asked to, or do not.
struct Devices {
    obey: bool,
}

impl EmulatedDevices for Devices {
    fn dma_unmap(&mut self, pages: &mut dyn DeviceAccess, range: IovaRange) {
        if self.obey {
            pages.unpin_pages(range.start(), range.pages());
        }
    }
}

/// Whatever was called: a refused call leaves the caller's memory as it was, and a
/// container that is closed leaves neither pins nor tables behind.
pub(crate) fn run(input: &[u8]) {
    with_layer(|mut layer, _| {
        let frames = layer.frames_available();
        let mut input = Input::new(input);
        let mut mappings = [MappingSlot::default(); 16];
        let mut pins = [PinSlot::default(); 16];
        let mut words = [0; 16];
        let version = match input.u8() {
            0 => Version::V1,
            _ => Version::V2,
        };
        let resources = Resources {
            mappings: &mut mappings,
            pins: &mut pins,
            bitmaps: &mut words,
        };
        let mut container = Container::open(&mut layer, version, resources).unwrap();
        while !input.is_empty() {
            let group = GROUPS[usize::from(input.u8()) % GROUPS.len()];
            match input.u8() % 16 {
                0 | 1 => {
                    let _ = container.attach_group(group);
                }
                2 => {
                    let _ = container.detach_group(group);
                }
                3 => container.register_device(),
                4 => container.unregister_device(),
                5 => pin(&mut container, group, &mut input),
                6 => {
                    let _ = container.unpin_pages(iova(&mut input), u64::from(input.u8()));
                }
                7 => {
                    let mut bytes = vec![0; usize::from(input.u16()) % 0x3000];
                    let _ = container.read(iova(&mut input), &mut bytes);
                    let _ = container.write(iova(&mut input), &bytes);
                }
                _ => call(&mut container, &mut input),
            }
        }
        container.close().unwrap();
        assert_eq!(layer.frames_available(), frames, "tables were left behind");
        let pinned = (0..FRAMES).find(|gfn| layer.is_pinned(Gfn::new(*gfn)));
        assert_eq!(pinned, None, "a page stayed pinned");
    });
}

fn pin(pages: &mut impl DeviceAccess, group: Group, input: &mut Input<'_>) {
    let access = [Access::Read, Access::Write, Access::ReadWrite];
    let access = access[usize::from(input.u8()) % access.len()];
    let mut frames = vec![Gfn::new(u64::MAX); usize::from(input.u8()) % 8];
    let pinned = pages.pin_pages(group, iova(input), access, &mut frames);
    if pinned.is_ok() {
        assert!(frames.iter().all(|gfn| gfn.number() < FRAMES));
    }
}

fn call<M, U>(container: &mut Container<'_, '_, M, U>, input: &mut Input<'_>)
where
    M: hv_core::memory::PhysMemory,
    U: iommu::unit::HostUnit,
{
    let commands = [
        MAP_DMA,
        UNMAP_DMA,
        DIRTY_PAGES,
        GET_INFO,
        UNMAP_DMA_GET_BITMAP,
        CHECK_EXTENSION,
    ];
    let command = match input.u8() {
        0xff => u32::from(input.u16()),
        choice => commands[usize::from(choice) % commands.len()],
    };
    let mut caller = Caller::with(&request(command, input));
    let before = caller.0.clone();
    let at = MEMORY + u64::from(input.u8() / 0xf0);
    let obey = !input.u8().is_multiple_of(4);
    let done = container.ioctl(command, at, &mut caller, &mut Devices { obey });
    if let Err(error) = done {
        assert_ne!(error.errno(), 5, "the unit does not fail");
        assert!(caller.0 == before, "refused ({error}), but memory changed");
    }
}

/// A request of about the right form, or the bytes as they come.
fn request(command: u32, input: &mut Input<'_>) -> Vec<u8> {
    if input.u8().is_multiple_of(8) {
        return input.bytes(64).to_vec();
    }
    let flags = u32::from(input.u8() % 8);
    let argsz = 48 + u32::from(input.u8() / 0xf0);
    match command {
        MAP_DMA => bytes_of(&DmaMap {
            argsz,
            flags,
            vaddr: u64::from(input.u8()) * PAGE_SIZE,
            iova: iova(input).raw(),
            size: size(input),
        }),
        UNMAP_DMA => {
            let unmap = DmaUnmap {
                argsz,
                flags,
                iova: iova(input).raw(),
                size: size(input),
            };
            [bytes_of(&unmap), bytes_of(&bitmap(input))].concat()
        }
        DIRTY_PAGES => {
            let header = DirtyBitmapHeader { argsz, flags };
            let range = BitmapRange {
                iova: iova(input).raw(),
                size: size(input),
                bitmap: bitmap(input),
            };
            [bytes_of(&header), bytes_of(&range)].concat()
        }
        _ => {
            let words = [argsz, flags, input.u16().into(), input.u16().into()];
            bytes_of(&words)
        }
    }
}

fn bytes_of(value: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn bitmap(input: &mut Input<'_>) -> Bitmap {
    Bitmap {
        pgsize: PAGE_SIZE << (input.u8() / 0xf0),
        size: u64::from(input.u8()),
        data: BITMAP + u64::from(input.u16()) % 0x400,
    }
}

/// Mostly a page of a few, sometimes anything.
fn iova(input: &mut Input<'_>) -> Iova {
    Iova::new(match input.u8() {
        0xff => input.u64(),
        page => u64::from(page % 64) * PAGE_SIZE,
    })
}

/// Mostly a few pages, sometimes anything.
fn size(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0xff => input.u64(),
        pages => u64::from(pages % 32) * PAGE_SIZE,
    }
}
