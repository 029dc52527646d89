//! What is reported of pages that a device really wrote, as in the benchmark image.

use crate::edu::Edu;
use crate::memory::Memory;
use crate::vfio::{Container, PAGE};
use anyhow::Result;
use std::io::Write;

/// How many pages are mapped, each by itself; of each so many the device uses one.
const MAPPED: u64 = 64;
const USES_ONE_OF: usize = 8;
/// Where the first is, within the device's DMA mask.
const FIRST: u64 = 0x10_0000;
/// What the pages hold before: not what the device's buffer holds.
const BEFORE: u8 = 0x5a;

/// Has the device write some of the pages, or read some where it may not write, and
/// writes a record of what the unmap reports of either.
pub(crate) fn all(container: &Container, memory: &Memory, output: &mut impl Write) -> Result<()> {
    let edu = Edu::new(container.device())?;
    for (operation, writable) in [
        ("written-some-of-64", true),
        ("written-none-read-only", false),
    ] {
        for index in 0..MAPPED {
            let offset = index * PAGE;
            memory.fill(index as usize, BEFORE);
            container.map(FIRST + offset, memory.address + offset, PAGE, writable)?;
        }
        for index in (0..MAPPED).step_by(USES_ONE_OF) {
            let iova = FIRST + index * PAGE;
            if writable {
                edu.write_page(iova)?;
            } else {
                edu.read_page(iova)?;
            }
        }
        let mut bitmap = [0];
        container.unmap(FIRST, MAPPED * PAGE, &mut bitmap)?;
        let is_written = |index: &u64| memory.first_byte(*index as usize) != BEFORE;
        let written = (0..MAPPED).filter(is_written).count();
        writeln!(
            output,
            "{{\"operation\":\"{operation}\",\"mappings\":{MAPPED},\"pages\":{MAPPED},\
             \"others\":0,\"instructions\":0,\"bits\":{},\"written\":{written}}}",
            bitmap[0].count_ones(),
        )?;
    }
    Ok(())
}
