//! Memory to map: contiguous and scattered.
#![allow(unsafe_code)]

use crate::vfio::PAGE;
use anyhow::{Result, ensure};
use std::ptr;

/// The most that is mapped.
pub(crate) const BYTES: usize = 128 << 20;
/// As many huge pages of 2 MiB hold it.
pub(crate) const HUGE_PAGES: usize = BYTES >> 21;

/// A step in pages that is prime, so that every page is met once.
const SCATTER: usize = 7919;

/// Memory of this process that is all there.
pub(crate) struct Memory {
    /// Its address.
    pub(crate) address: u64,
}

impl Memory {
    /// Huge pages: each 2 MiB are contiguous.
    pub(crate) fn contiguous() -> Result<Self> {
        let memory = Self::reserve(libc::MAP_HUGETLB)?;
        for page in 0..BYTES / PAGE as usize {
            memory.touch(page);
        }
        Ok(memory)
    }

    /// Pages of 4 KiB, made present in an order that keeps neighbours apart.
    pub(crate) fn scattered() -> Result<Self> {
        let memory = Self::reserve(0)?;
        // SAFETY: the mapping just made.
        unsafe { libc::madvise(memory.address as *mut _, BYTES, libc::MADV_NOHUGEPAGE) };
        let pages = BYTES / PAGE as usize;
        for index in 0..pages {
            memory.touch(index * SCATTER % pages);
        }
        Ok(memory)
    }

    fn reserve(more_flags: i32) -> Result<Self> {
        // SAFETY: a new anonymous mapping, which is never given back.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more_flags,
                -1,
                0,
            )
        };
        ensure!(address != libc::MAP_FAILED, std::io::Error::last_os_error());
        Ok(Self {
            address: address as u64,
        })
    }

    /// Fills a page.
    pub(crate) fn fill(&self, page: usize, byte: u8) {
        // SAFETY: as in `touch`.
        unsafe { self.at(page).write_bytes(byte, PAGE as usize) };
    }

    /// What a page begins with.
    pub(crate) fn first_byte(&self, page: usize) -> u8 {
        // SAFETY: as in `touch`; a device may have written there.
        unsafe { self.at(page).read_volatile() }
    }

    fn at(&self, page: usize) -> *mut u8 {
        (self.address as usize + page * PAGE as usize) as *mut u8
    }

    fn touch(&self, page: usize) {
        // SAFETY: within the mapping, which nobody else uses.
        unsafe { self.at(page).write_volatile(1) };
    }
}
