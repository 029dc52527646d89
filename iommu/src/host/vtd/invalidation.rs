//! What a unit has to be told when a device's entry or a domain's tables changed.
//!
//! One place for the descriptors and their order; the queue carries a list out in
//! the order given and waits once. The order within a list is one that hardware
//! keeps by itself (VT-d 4.1, 6.5.2.11 "Queued Invalidation Ordering
//! Considerations"): translations are dropped after context and PASID entries, and what
//! devices keep after what the unit does.

use super::choice::Translation;
use crate::IovaRange;
use crate::device_tlb::DeviceTlb;
use crate::page_block::PageBlock;
use crate::unit::{Scope, SourceId};
use crate::vtd::{
    Capabilities, ContextCacheScope, Descriptor, ExtendedCapabilities, IotlbScope, PasidCacheScope,
    PasidDescriptor, PasidIotlbScope,
};
use hv_core::PAGE_SHIFT;

/// Requests without a PASID are cached under this one.
const RID_PASID: u32 = 0;

/// The invalidation that waits for the DMA in flight, reads and writes.
#[inline]
pub(super) fn drained(scope: IotlbScope) -> Descriptor {
    Descriptor::Iotlb {
        scope,
        drain_reads: true,
        drain_writes: true,
    }
}

/// Everything translated for `domain`.
pub(super) fn domain(translation: Translation, domain: u16) -> u128 {
    match translation {
        Translation::Legacy(_) | Translation::SecondStageDirty(_) => {
            drained(IotlbScope::Domain { domain }).encode()
        }
        Translation::FirstStage => first_stage(domain, PasidIotlbScope::All),
    }
}

/// The smallest invalidation the unit knows that covers `range` of `domain`: an
/// aligned power of two of pages, or the domain where that is too large for it.
#[inline]
pub(super) fn pages(
    translation: Translation,
    capabilities: &Capabilities,
    domain: u16,
    range: IovaRange,
) -> u128 {
    let first = range.start().raw() >> PAGE_SHIFT;
    let last = range.last_page().raw() >> PAGE_SHIFT;
    // Page numbers that share all bits from `order` up lie in one such block.
    let order = (u64::BITS - (first ^ last).leading_zeros()) as u8;
    let address = (first >> order << order) << PAGE_SHIFT;
    // Whole tables may have been unlinked: entries above the leaves go too.
    let leaves_only = false;
    match translation {
        Translation::FirstStage => {
            let scope = PasidIotlbScope::Pages {
                address,
                order,
                leaves_only,
            };
            first_stage(domain, scope)
        }
        _ if !capabilities.page_selective || order > capabilities.max_address_mask => {
            self::domain(translation, domain)
        }
        Translation::Legacy(_) | Translation::SecondStageDirty(_) => {
            let scope = IotlbScope::Pages {
                domain,
                address,
                order,
                leaves_only,
            };
            drained(scope).encode()
        }
    }
}

/// What `device` itself keeps of `scope`. It comes after the unit's own translations,
/// and hardware starts it only when those are gone.
pub(super) fn device_tlb(
    extended: &ExtendedCapabilities,
    device: SourceId,
    tlb: DeviceTlb,
    scope: Scope,
) -> u128 {
    let block = match scope {
        Scope::Pages(range) => PageBlock::over(range),
        Scope::Domain => PageBlock::ALL,
    };
    let throttled = extended.device_tlb_throttling;
    Descriptor::DeviceTlb {
        source: device,
        pending: tlb.queue_depth(),
        // No virtual function is passed through.
        physical: if throttled { device } else { SourceId::new(0) },
        block,
    }
    .encode()
}

/// Draining goes without saying there.
fn first_stage(domain: u16, scope: PasidIotlbScope) -> u128 {
    PasidDescriptor::Iotlb {
        domain,
        pasid: RID_PASID,
        scope,
    }
    .encode()
}

/// What is cached of `device`'s entries, which were tagged with the domain `tag` (0
/// for absent ones in caching mode).
pub(super) fn entries(
    translation: Translation,
    device: SourceId,
    tag: u16,
) -> impl Iterator<Item = u128> {
    let context = Descriptor::ContextCache(ContextCacheScope::Device {
        domain: tag,
        source: device,
        function_mask: 0,
    });
    let pasid = PasidDescriptor::Cache(PasidCacheScope::Domain { domain: tag });
    let pasid = translation.is_scalable().then(|| pasid.encode());
    [context.encode()].into_iter().chain(pasid)
}
