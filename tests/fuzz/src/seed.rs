//! The VFIO call, byte for byte, against a list of mappings.

use crate::input::Input;
use crate::unit::{FRAMES, with_layer};
use hv_core::{Gpa, PAGE_SIZE};
use iommu::seed::{FLAG_GET_DIRTY_BITMAP, UNMAP_DMA_GET_BITMAP, UnmapBitmap, ioctl};
use iommu::space::{Access, DmaSpace};
use iommu::{Iova, IovaRange};
use zerocopy::{FromBytes, IntoBytes};

/// A mapping: first page, count, and whether devices may write.
type Mapped = (u64, u64, bool);

pub(crate) fn run(input: &[u8]) {
    with_layer(|mut layer, _| {
        let domain = layer.create_domain().unwrap();
        let mut mapped: Vec<Mapped> = Vec::new();
        let mut input = Input::new(input);
        while !input.is_empty() {
            if input.u8().is_multiple_of(2) {
                let (page, pages) = (u64::from(input.u16()), u64::from(input.u8()) % 32);
                let gpa = Gpa::new(u64::from(input.u8()) % FRAMES * PAGE_SIZE);
                let access = [Access::Read, Access::Write, Access::ReadWrite];
                let access = access[usize::from(input.u8()) % 3];
                let Ok(range) = IovaRange::new(Iova::new(page * PAGE_SIZE), pages) else {
                    continue;
                };
                if layer.map(domain, range, gpa, access).is_ok() {
                    mapped.push((page, pages, access.writes()));
                }
            } else {
                let command = if input.u8() == 0 {
                    0
                } else {
                    UNMAP_DMA_GET_BITMAP
                };
                let mut bitmap = vec![0; usize::from(input.u16()) % 2048];
                let mut request = request(&mut input);
                let before = request.clone();
                let result = ioctl(&mut layer, domain, command, &mut request, &mut bitmap);
                if let Err(error) = result {
                    assert!([5, 14, 22, 25].contains(&error.errno()));
                    assert_ne!(error.errno(), 5, "the unit does not fail");
                    assert_eq!(request, before, "a refused request changed");
                    assert!(bitmap.iter().all(|word| *word == 0));
                    continue;
                }
                let (asked, _) = UnmapBitmap::read_from_prefix(&before).unwrap();
                let (answer, _) = UnmapBitmap::read_from_prefix(&request).unwrap();
                check(&mut mapped, &asked, answer.size, &bitmap);
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
        bitmap: input.u64(),
    };
    header.as_bytes().to_vec()
}

/// Compares what an unmap did with what the list says, and takes it off.
fn check(mapped: &mut Vec<Mapped>, asked: &UnmapBitmap, bytes: u64, bitmap: &[u64]) {
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
    if asked.flags & FLAG_GET_DIRTY_BITMAP != 0 {
        for (at, count, _) in gone.iter().filter(|(_, _, writes)| *writes) {
            for index in at - first..at - first + count {
                wanted[index as usize / 64] |= 1 << (index % 64);
            }
        }
    }
    assert_eq!(bitmap, wanted);
}
