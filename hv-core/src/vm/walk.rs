//! The guest's own page tables, read to find an instruction.
//!
//! AMD64 Architecture Programmer's Manual volume 2, section 5.3: long mode with
//! four levels. The CPU has just fetched through these tables, so rights are not
//! checked again and A bits need not be set.

use crate::Gpa;
use crate::memory::{GuestMemory, PhysMemory};
use crate::vcpu::VcpuState;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where `linear` lies in guest physical memory, or `None` if nothing is mapped
/// there.
pub(super) fn translate<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    state: &VcpuState,
    linear: u64,
) -> Option<Gpa> {
    if !state.is_paging() {
        return Some(Gpa::new(linear));
    }
    let mut table = state.cr3 & ADDRESS;
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = memory
            .read_u64(Gpa::new(table + (linear >> shift & 0x1ff) * 8))
            .ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        let is_leaf = level == 1 || (level < 4 && entry & LARGE != 0);
        if is_leaf {
            let offset = (1 << shift) - 1;
            return Some(Gpa::new((entry & ADDRESS & !offset) | linear & offset));
        }
        table = entry & ADDRESS;
    }
    None
}

/// Reads the instruction bytes at `linear`, across a page boundary if needed, and
/// returns how many there are: less than asked for where the mapping ends.
pub(super) fn fetch<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    state: &VcpuState,
    linear: u64,
    to: &mut [u8],
) -> usize {
    let mut done = 0;
    while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = linear.wrapping_add(done as u64);
        let in_page = (crate::PAGE_SIZE - (at & (crate::PAGE_SIZE - 1))) as usize;
        let count = rest.len().min(in_page);
        let read =
            translate(memory, state, at).and_then(|gpa| memory.read(gpa, &mut rest[..count]).ok());
        if read.is_none() {
            break;
        }
        done += count;
    }
    done
}
