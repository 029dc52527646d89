//! What pinning pages costs by itself.
//!
//! A page that is put into a pipe by vmsplice(2) is pinned, and splicing it on to
//! /dev/null releases it; the calls for many pages and for one differ by nothing else,
//! so the difference between many and one is that of the pages. An estimate: VFIO
//! pins for good and accounts the memory, which takes a longer path in the kernel,
//! but does it once for the neighbours in a huge page.
#![allow(unsafe_code)]

use crate::measure::instructions;
use crate::memory::Memory;
use crate::vfio::PAGE;
use anyhow::{Result, ensure};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

const MANY: u64 = 128;
const REPETITIONS: usize = 9;

/// Instructions a page.
pub(crate) struct Cost {
    /// To pin it.
    pub(crate) pin: u64,
    /// To release it.
    pub(crate) unpin: u64,
}

/// Measures it.
pub(crate) fn cost(memory: &Memory) -> Result<Cost> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    ensure!(unsafe { libc::pipe(ends.as_mut_ptr()) } == 0, "pipe");
    // SAFETY: descriptors that the kernel has just made for us.
    let [reader, writer] = ends.map(|fd| unsafe { File::from_raw_fd(fd) });
    let size = (MANY * PAGE) as libc::c_int;
    // SAFETY: takes numbers only.
    let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    ensure!(set >= size, "the pipe stays too small");
    let null = OpenOptions::new().write(true).open("/dev/null")?;

    let (mut pins, mut unpins) = ([0; 2], [0; 2]);
    for (index, pages) in [1, MANY].into_iter().enumerate() {
        let bytes = (pages * PAGE) as usize;
        let piece = libc::iovec {
            iov_base: memory.address as *mut _,
            iov_len: bytes,
        };
        let (mut all_pins, mut all_unpins) = (Vec::new(), Vec::new());
        for _ in 0..REPETITIONS {
            // SAFETY: one piece of memory that stays there; its content is nobody's.
            let (done, count) = instructions(|| unsafe {
                libc::vmsplice(writer.as_raw_fd(), &raw const piece, 1, 0)
            });
            ensure!(done == bytes as isize, "vmsplice took {done} bytes");
            all_pins.push(count);
            // SAFETY: no offsets are given.
            let (done, count) = instructions(|| unsafe {
                libc::splice(
                    reader.as_raw_fd(),
                    ptr::null_mut(),
                    null.as_raw_fd(),
                    ptr::null_mut(),
                    bytes,
                    0,
                )
            });
            ensure!(done == bytes as isize, "splice took {done} bytes");
            all_unpins.push(count);
        }
        (pins[index], unpins[index]) = (
            crate::measure::median(all_pins),
            crate::measure::median(all_unpins),
        );
    }
    let per_page = |[one, many]: [u64; 2]| many.saturating_sub(one) / (MANY - 1);
    Ok(Cost {
        pin: per_page(pins),
        unpin: per_page(unpins),
    })
}
