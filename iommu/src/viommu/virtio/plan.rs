//! What a request comes to, checked against what there is: the task it asks for, or
//! the status it is refused with.
//!
//! Virtio 1.2, section 5.13.6; where several statuses would do, the order of the
//! checks below decides.

use super::VirtioIommu;
use super::config::{LAST_DOMAIN, last_input};
use super::endpoints::{Change, Membership};
use super::property::DOORBELL;
use super::request::{Request, Status};
use super::work::Task;
use crate::space::{Access, DmaSpace, Piece};
use crate::unit::DomainId;
use crate::{Iova, IovaRange};
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::{Gfn, PAGE_SHIFT, PAGE_SIZE};

impl VirtioIommu {
    /// Checks a request against what there is. What only the host side can tell is
    /// told by the task.
    pub(super) fn plan<M: PhysMemory>(
        &self,
        request: Request,
        guest: &GuestMemory<'_, M>,
        space: &impl DmaSpace,
    ) -> Result<Task, Status> {
        match request {
            Request::Attach {
                domain,
                endpoint,
                bypass,
            } => {
                let index = self.endpoints.index_of(endpoint).ok_or(Status::NoEntry)?;
                if domain > LAST_DOMAIN {
                    return Err(Status::Range);
                }
                let there = self.endpoints.domain(domain);
                if there.is_some_and(|there| there.bypass != bypass) {
                    return Err(Status::Invalid);
                }
                let to = Some(Membership { domain, bypass });
                Ok(Task::Settle(Change::Move { index, to }))
            }
            Request::Detach { domain, endpoint } => {
                let index = self.endpoints.index_of(endpoint).ok_or(Status::NoEntry)?;
                let endpoint = self.endpoints.all().get(index).ok_or(Status::NoEntry)?;
                if endpoint.membership.is_none_or(|at| at.domain != domain) {
                    return Err(Status::Invalid);
                }
                Ok(Task::Settle(Change::Move { index, to: None }))
            }
            Request::Map {
                domain,
                first,
                last,
                physical,
                access,
            } => {
                let host = self.host_of(domain)?;
                let mapping = self.mapping(guest, first..=last, physical, access)?;
                Ok(Task::Map {
                    host,
                    mapping,
                    rest: mapping.range,
                })
            }
            Request::Unmap {
                domain,
                first,
                last,
            } => {
                let host = self.host_of(domain)?;
                if last < first {
                    return Err(Status::Invalid);
                }
                match whole_pages(host, first, last, space)? {
                    Some(range) if space.bisects(host, range) => Err(Status::Range),
                    Some(range) => Ok(Task::Unmap { host, range }),
                    None => Ok(Task::Answer),
                }
            }
            // Answered at once: see above.
            Request::Probe { .. } => Ok(Task::Answer),
        }
    }

    /// The host domain behind one that mappings can be made in.
    fn host_of(&self, domain: u32) -> Result<DomainId, Status> {
        match self.endpoints.domain(domain) {
            None => Err(Status::NoEntry),
            Some(Membership { bypass: true, .. }) => Err(Status::Invalid),
            Some(_) => self.endpoints.host_of(domain).ok_or(Status::NoEntry),
        }
    }

    /// What MAP asks for, as far as that can be told without the domain.
    fn mapping<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        input: core::ops::RangeInclusive<u64>,
        physical: u64,
        access: Access,
    ) -> Result<Piece, Status> {
        let (first, last) = input.into_inner();
        let ends = last.wrapping_add(1);
        if [first, ends, physical]
            .iter()
            .any(|at| !at.is_multiple_of(PAGE_SIZE))
        {
            return Err(Status::Range);
        }
        if last < first {
            return Err(Status::Invalid);
        }
        if last > last_input(self.width) {
            return Err(Status::Range);
        }
        if first <= *DOORBELL.end() && last >= *DOORBELL.start() {
            return Err(Status::Invalid);
        }
        let pages = ((last - first) >> PAGE_SHIFT) + 1;
        let gfn = Gfn::new(physical >> PAGE_SHIFT);
        if !is_memory(guest, gfn, pages) {
            return Err(Status::Fault);
        }
        let range = IovaRange::new(Iova::new(first), pages).map_err(|_| Status::Range)?;
        Ok(Piece {
            range,
            gfn,
            access,
            first: true,
            last: true,
        })
    }
}

/// The whole pages of what UNMAP names, `None` if it has none. A page of which it
/// names a part only must not be mapped.
fn whole_pages(
    host: DomainId,
    first: u64,
    last: u64,
    space: &impl DmaSpace,
) -> Result<Option<IovaRange>, Status> {
    let is_mapped = |at: u64| {
        let page = Iova::new(at).page_base();
        let piece = space.next_piece(host, page);
        piece.is_some_and(|piece| piece.range.contains(page))
    };
    let starts_inside = !first.is_multiple_of(PAGE_SIZE);
    let ends_inside = !last.wrapping_add(1).is_multiple_of(PAGE_SIZE);
    if starts_inside && is_mapped(first) || ends_inside && is_mapped(last) {
        return Err(Status::Range);
    }
    let begin = first.div_ceil(PAGE_SIZE);
    let end = (last >> PAGE_SHIFT) + u64::from(!ends_inside);
    Ok(end
        .checked_sub(begin)
        .and_then(|pages| IovaRange::new(Iova::new(begin << PAGE_SHIFT), pages).ok()))
}

/// Whether all of these frames are the guest's memory.
fn is_memory<M: PhysMemory>(guest: &GuestMemory<'_, M>, gfn: Gfn, pages: u64) -> bool {
    let mut next = gfn.number();
    let Some(end) = next.checked_add(pages) else {
        return false;
    };
    while next < end {
        let in_slot = guest.slots().iter().find_map(|slot| {
            let index = next.checked_sub(slot.gfn.number())?;
            slot.frames.checked_sub(index).filter(|left| *left > 0)
        });
        let Some(left) = in_slot else {
            return false;
        };
        next += left;
    }
    true
}
