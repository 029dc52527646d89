//! Invalidation commands: from the queue, and from the registers CCMD and IOTLB
//! that a driver may use while the queue is off.
//!
//! Intel VT-d specification, sections "Queued Invalidation Interface" and
//! "Register-based Invalidation Interface".
//!
//! Descriptors are done strictly in order, and one is done only when its effect
//! holds, so a wait descriptor has nothing left to wait for: fences hold by
//! themselves. The sequence that makes an unmap safe for the guest is
//!
//! ```text
//! guest: clear leaf -> IOTLB descriptor -> wait descriptor -> ring IQT
//! unit:                replace / unmap      status write       IQH moves
//!                      (drained and in       only after
//!                       the dirty log)       that
//! ```

use super::VtdViommu;
use super::capability::MAX_ADDRESS_MASK;
use super::registers::{BUSY, CCMD_DONE, IOTLB_DONE, Registers};
use super::walk::is_mapped;
use super::work::{DeviceMask, Job, Origin};
use crate::unit::SourceId;
use crate::vtd::{ContextCacheScope, Descriptor, IotlbScope, QueueAddress};
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::sabotage::{Sabotage, is_active};
use hv_core::{Gpa, PAGE_SHIFT};

/// What became of the descriptor at the queue's head.
pub(super) enum Fetched {
    /// It takes a job to carry out.
    Job(Job),
    /// It has been carried out.
    Done,
    /// It cannot be, or cannot even be read. The queue stops here, head in place.
    Malformed,
}

impl VtdViommu {
    /// Reads the descriptor at the head and carries it out as far as no job is
    /// needed.
    pub(super) fn fetch<M: PhysMemory>(&mut self, guest: &GuestMemory<'_, M>) -> Fetched {
        match self.read_head(guest) {
            Some(Descriptor::ContextCache(scope)) => {
                Fetched::Job(Job::devices(self.affected(scope), Origin::Queue))
            }
            Some(Descriptor::Iotlb { scope, .. }) if within_mask(scope) => {
                if let Some(late) = self.held_back.take() {
                    return Fetched::Job(Job::iotlb(late, Origin::HeldBack));
                }
                if is_active(Sabotage::UnmapOrder) && self.is_unmap(scope, guest) {
                    self.held_back.hold(scope);
                    return Fetched::Done;
                }
                Fetched::Job(Job::iotlb(scope, Origin::Queue))
            }
            Some(Descriptor::Wait {
                status, interrupt, ..
            }) => {
                if let Some(status) = status
                    && guest
                        .write_u32(Gpa::new(status.address), status.data)
                        .is_err()
                {
                    return Fetched::Malformed;
                }
                // After the status: a handler that looks for it finds it.
                if interrupt && !self.registers.wait_complete {
                    self.registers.wait_complete = true;
                    self.registers.completion.raise();
                }
                Fetched::Done
            }
            // Nothing is cached of the table.
            Some(Descriptor::InterruptCache(_)) if self.registers.remaps_interrupts() => {
                Fetched::Done
            }
            // What is not advertised has no descriptors.
            _ => Fetched::Malformed,
        }
    }

    /// The descriptor at the head; `None` if queue, head or tail lead nowhere, or
    /// it is malformed.
    fn read_head<M: PhysMemory>(&self, guest: &GuestMemory<'_, M>) -> Option<Descriptor> {
        let Registers {
            head, tail, queue, ..
        } = self.registers;
        let queue = QueueAddress::decode(queue)?;
        if head >= queue.bytes() || tail >= queue.bytes() {
            return None;
        }
        let at = Gpa::new(queue.base).checked_add(head)?;
        let low = guest.read_u64(at).ok()?;
        let high = guest.read_u64(at.checked_add(8)?).ok()?;
        Descriptor::decode(u128::from(high) << 64 | u128::from(low)).ok()
    }

    /// Whether the guest's table has nothing at the first page of the scope: for
    /// the sabotage, which keeps unmaps back until the next invalidation comes, so
    /// that the guest's wait completes too early, but lets maps through.
    fn is_unmap<M: PhysMemory>(&self, scope: IotlbScope, guest: &GuestMemory<'_, M>) -> bool {
        let IotlbScope::Pages {
            domain, address, ..
        } = scope
        else {
            return false;
        };
        let table = self
            .shadows
            .next_of(Some(domain), 0)
            .map(|(_, table, _)| table);
        table.is_some_and(|table| !is_mapped(guest, &table, address >> PAGE_SHIFT))
    }

    pub(super) fn advance_head(&mut self) {
        if let Some(queue) = QueueAddress::decode(self.registers.queue) {
            self.registers.head = queue.next(self.registers.head);
        }
    }

    /// The devices whose context entry a command may concern. Hardware may drop
    /// what it caches at any time, so looking at too many is always right: a
    /// device without a domain is concerned by every domain, for absent entries
    /// are cached too, and the domain given for a single device does not matter.
    fn affected(&self, scope: ContextCacheScope) -> DeviceMask {
        let devices = self.shadows.devices().iter().enumerate();
        let concerned = devices.filter(|(_, device)| match scope {
            ContextCacheScope::Global => true,
            ContextCacheScope::Domain { domain } => self
                .shadows
                .table_of(device)
                .is_none_or(|table| table.domain == domain),
            ContextCacheScope::Device {
                source,
                function_mask,
                ..
            } => matches(device.ids.guest, source, function_mask),
        });
        concerned.fold(0, |mask, (index, _)| mask | 1 << index)
    }

    /// Starts what CCMD asks for; a reserved granularity is done at once, and
    /// reported as nothing done.
    pub(super) fn begin_context_register(&mut self) -> Option<Job> {
        let ccmd = self.registers.ccmd;
        let domain = ccmd as u16;
        let scope = match ccmd >> 61 & 3 {
            1 => ContextCacheScope::Global,
            2 => ContextCacheScope::Domain { domain },
            3 => ContextCacheScope::Device {
                domain,
                source: SourceId::new((ccmd >> 16) as u16),
                function_mask: (ccmd >> 32 & 3) as u8,
            },
            _ => {
                self.finish_context_register();
                return None;
            }
        };
        Some(Job::devices(self.affected(scope), Origin::ContextRegister))
    }

    /// ICC goes, and CAIG says that the granularity asked for (CIRG) was done.
    pub(super) fn finish_context_register(&mut self) {
        let ccmd = &mut self.registers.ccmd;
        let asked = *ccmd >> 61 & 3;
        *ccmd = *ccmd & !(BUSY | CCMD_DONE) | asked << 59;
    }

    /// Starts what IOTLB and IVA ask for; as with CCMD, what is reserved is done
    /// at once, and reported as nothing done.
    pub(super) fn begin_iotlb_register(&mut self) -> Option<Job> {
        let Registers { iotlb, iva, .. } = self.registers;
        let domain = (iotlb >> 32) as u16;
        let scope = match iotlb >> 60 & 3 {
            1 => Some(IotlbScope::Global),
            2 => Some(IotlbScope::Domain { domain }),
            3 => Some(IotlbScope::Pages {
                domain,
                address: iva & !0xfff,
                order: (iva & 0x3f) as u8,
                leaves_only: iva & 0x40 != 0,
            }),
            _ => None,
        };
        match scope.filter(|&scope| within_mask(scope)) {
            Some(scope) => Some(Job::iotlb(scope, Origin::IotlbRegister)),
            None => {
                self.registers.iotlb &= !(BUSY | IOTLB_DONE);
                None
            }
        }
    }

    /// IVT goes, and IAIG says that the granularity asked for (IIRG) was done.
    pub(super) fn finish_iotlb_register(&mut self) {
        let iotlb = &mut self.registers.iotlb;
        let asked = *iotlb >> 60 & 3;
        *iotlb = *iotlb & !(BUSY | IOTLB_DONE) | asked << 57;
    }
}

/// Whether a scope names no more pages than CAP.MAMV allows.
const fn within_mask(scope: IotlbScope) -> bool {
    !matches!(scope, IotlbScope::Pages { order, .. } if order > MAX_ADDRESS_MASK)
}

/// Whether a device is meant by a source whose `function_mask` highest bits of
/// the function number do not count.
const fn matches(device: SourceId, source: SourceId, function_mask: u8) -> bool {
    let ignored = match function_mask {
        0 => 0,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    };
    (device.raw() ^ source.raw()) & !ignored == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_mask_takes_bits_from_the_highest_down() {
        let device = SourceId::new(0x1d);
        assert!(matches(device, SourceId::new(0x1d), 0));
        assert!(!matches(device, SourceId::new(0x19), 0));
        assert!(matches(device, SourceId::new(0x19), 1));
        assert!(!matches(device, SourceId::new(0x18), 2));
        assert!(matches(device, SourceId::new(0x18), 3));
        assert!(!matches(device, SourceId::new(0x11), 3));
    }
}
