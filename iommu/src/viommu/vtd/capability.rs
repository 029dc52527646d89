//! What the emulated unit can do, and why it says so.

use super::faults::RECORDS;
use crate::vtd::{AddressWidth, Capabilities, ExtendedCapabilities};

/// The width of guest physical addresses in the guest's tables: bits from here up
/// to 51 are reserved there. The guest's DMAR table gives this as its host
/// address width. Whether there is memory behind an address is another question,
/// asked of the guest's slots each time.
pub const HOST_ADDRESS_WIDTH: u8 = 48;

/// VER: major 1, minor 0. Later versions only announce features that CAP and ECAP
/// deny here.
pub(super) const VERSION: u32 = 0x10;

/// log2 of how many pages one invalidation by pages may name: 1 GiB, one table of
/// level 2. More is the business of a domain-selective one, at the same cost.
pub(super) const MAX_ADDRESS_MASK: u8 = 18;

/// Where the registers IVA and IOTLB lie: in the gap after IRTA.
pub(super) const IOTLB_OFFSET: u16 = 0x100;

/// Where the fault records lie, in the same page.
pub(super) const FAULT_OFFSET: u16 = 0x200;

/// CAP of a unit whose IOVAs have up to `width` bits.
pub(super) const fn capabilities(width: AddressWidth) -> Capabilities {
    Capabilities {
        // 2^16: guest domain numbers are keys of a search, not of a table, so all
        // that fit a context entry are equally cheap.
        domains: 6,
        // Guest stores are seen at once, nothing buffers them.
        write_buffer_flush: false,
        // Protected regions guard a machine's boot before translation is on; what
        // a device reaches then is the hypervisor's business.
        protected_low: false,
        protected_high: false,
        // The shadow of the guest's tables learns of a new mapping only by an
        // invalidation: this bit makes the guest send one.
        caching_mode: true,
        // Three levels always; four where the host's domains have them too.
        width_39: true,
        width_48: matches!(width, AddressWidth::Bits48),
        guest_width: width.bits(),
        // Depends on the host's unit, and denying it costs a guest nothing but
        // read permission on pages it writes.
        zero_length_read: false,
        fault_offset: FAULT_OFFSET,
        // Pages are compared and reported one by one; a large leaf would be 512
        // of them in any case.
        large_2m: false,
        large_1g: false,
        // Makes an unmap cost as much as it removes.
        page_selective: true,
        fault_records: RECORDS as u16,
        max_address_mask: MAX_ADDRESS_MASK,
        // Every change of a shadow drains both before it returns (see
        // `DmaSpace`), whether asked to or not.
        drain_writes: true,
        drain_reads: true,
    }
}

/// ECAP of a unit that remaps interrupts or not.
pub(super) const fn extended_capabilities(remaps_interrupts: bool) -> ExtendedCapabilities {
    ExtendedCapabilities {
        // Tables are read by the CPU, through its caches.
        coherent: true,
        queued_invalidation: true,
        // Passing on invalidations to devices' own TLBs is not done.
        device_tlb: false,
        device_tlb_throttling: false,
        // As the guest's owner wants it: some kernels go without.
        interrupt_remapping: remaps_interrupts,
        // Entries are decoded with all 32 bits in any case; without this a kernel
        // leaves x2APIC mode, where its APIC costs an exit with a decoded access
        // each time.
        extended_interrupts: remaps_interrupts,
        // A device of an active unit reaches what tables say and nothing else.
        pass_through: false,
        // The host's tables do not carry the guest's snoop bits.
        snoop_control: false,
        iotlb_offset: IOTLB_OFFSET,
        // Legacy mode is what every kernel drives.
        scalable: false,
        second_stage_dirty: false,
        second_stage: false,
        first_stage: false,
        walk_snoops: false,
    }
}
