//! The I/O and MSR permission maps.
//!
//! AMD64 Architecture Programmer's Manual volume 2, sections 15.10.1 and 15.11: a
//! set bit intercepts. The MSR map has two bits an MSR, read and then write.

use crate::memory::PhysMemory;
use crate::{Hpa, PAGE_SIZE};
use core::sync::atomic::Ordering;

/// Frames of the I/O permission map: 64 Ki bits and 3 more, in whole pages.
pub(super) const IO_FRAMES: u64 = 3;
/// Frames of the MSR permission map.
pub(super) const MSR_FRAMES: u64 = 2;

/// MSRs that the guest uses without an exit: VMLOAD and VMSAVE switch them.
const OWN_MSRS: [u32; 10] = [
    0x0000_0174, // SYSENTER_CS
    0x0000_0175, // SYSENTER_ESP
    0x0000_0176, // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// Sets every bit of a map.
pub(super) fn intercept_all<M: PhysMemory>(mem: &M, map: Hpa, frames: u64) {
    for index in 0..frames {
        let frame = map.checked_add(index * PAGE_SIZE);
        for word in frame
            .and_then(|hpa| mem.frame(hpa))
            .into_iter()
            .flat_map(|f| f.words())
        {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }
}

/// Lets the guest use [`OWN_MSRS`] without an exit.
pub(super) fn allow_own_msrs<M: PhysMemory>(mem: &M, map: Hpa) {
    for msr in OWN_MSRS {
        let Some((byte, bits)) = position(msr) else {
            continue;
        };
        let hpa = map.checked_add(byte / PAGE_SIZE * PAGE_SIZE);
        if let Some(frame) = hpa.and_then(|hpa| mem.frame(hpa)) {
            let within = byte % PAGE_SIZE;
            let mask = u64::from(bits) << (8 * (within % 8));
            frame.words()[within as usize / 8].fetch_and(!mask, Ordering::Relaxed);
        }
    }
}

/// The byte of the map that holds an MSR's two bits, and these bits.
fn position(msr: u32) -> Option<(u64, u8)> {
    let (start, first) = match msr {
        0x0000_0000..=0x0000_1fff => (0x0000, 0x0000_0000),
        0xc000_0000..=0xc000_1fff => (0x0800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    let bit = u64::from(msr - first) * 2;
    Some((start + bit / 8, 3 << (bit % 8)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Arena;

    #[test]
    fn exactly_the_own_msrs_are_not_intercepted() {
        let arena = Arena::new(Hpa::new(0x1000), 2);
        intercept_all(&arena, arena.start(), MSR_FRAMES);
        allow_own_msrs(&arena, arena.start());
        let clear: u32 = [0x1000, 0x2000]
            .iter()
            .flat_map(|hpa| arena.frame(Hpa::new(*hpa)).unwrap().words())
            .map(|word| word.load(Ordering::Relaxed).count_zeros())
            .sum();
        assert_eq!(clear, 2 * OWN_MSRS.len() as u32);
        // LSTAR: 0x800 + 0x82 * 2 / 8.
        assert_eq!(position(0xc000_0082), Some((0x820, 0x30)));
        assert_eq!(position(0x802), Some((0x200, 0x30)));
        assert_eq!(position(0x4000_0000), None);
    }
}
