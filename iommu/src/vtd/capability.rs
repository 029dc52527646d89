//! What a unit can do (VT-d 4.1, 11.4.2 "Capability Register" and 11.4.3
//! "Extended Capability Register").
//!
//! Fields that neither the driver nor the emulation has a use for are left out:
//! they decode to nothing and encode as zero, "not supported".

use super::bits::{flag, get, put};
use super::context_entry::AddressWidth;

/// CAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// ND, bits 2:0: the unit tells 2^(4 + 2 ND) domains apart. See
    /// [`Capabilities::domain_count`].
    pub domains: u8,
    /// RWBF, bit 4: software has to flush the unit's write buffer before it can
    /// rely on the unit seeing its stores to tables.
    pub write_buffer_flush: bool,
    /// PLMR, bit 5: there is a low protected memory region.
    pub protected_low: bool,
    /// PHMR, bit 6: there is a high protected memory region.
    pub protected_high: bool,
    /// CM, bit 7: entries that are not present may be cached too, under domain 0
    /// for root and context entries.
    pub caching_mode: bool,
    /// SAGAW, bit 9: second-stage tables of three levels.
    pub width_39: bool,
    /// SAGAW, bit 10: second-stage tables of four levels.
    pub width_48: bool,
    /// MGAW, bits 21:16 plus one: the number of address bits a DMA may use, from
    /// 1 to 64.
    pub guest_width: u8,
    /// ZLR, bit 22: zero-length reads of write-only pages are allowed.
    pub zero_length_read: bool,
    /// FRO, bits 33:24, times 16: where the fault records start in the register
    /// window, in bytes; below 16 KiB.
    pub fault_offset: u16,
    /// SLLPS, bit 34: leaves of 2 MiB.
    pub large_2m: bool,
    /// SLLPS, bit 35: leaves of 1 GiB.
    pub large_1g: bool,
    /// PSI, bit 39: IOTLB invalidation by pages.
    pub page_selective: bool,
    /// NFR, bits 47:40, plus one: the number of fault records, from 1 to 256.
    pub fault_records: u16,
    /// MAMV, bits 53:48: an invalidation by pages takes at most 2^MAMV pages.
    pub max_address_mask: u8,
    /// DWD, bit 54: an IOTLB invalidation can drain writes.
    pub drain_writes: bool,
    /// DRD, bit 55: an IOTLB invalidation can drain reads.
    pub drain_reads: bool,
}

impl Capabilities {
    /// Reads the register's value.
    pub const fn decode(raw: u64) -> Self {
        Self {
            domains: get(raw, 0, 3) as u8,
            write_buffer_flush: flag(raw, 4),
            protected_low: flag(raw, 5),
            protected_high: flag(raw, 6),
            caching_mode: flag(raw, 7),
            width_39: flag(raw, 9),
            width_48: flag(raw, 10),
            guest_width: get(raw, 16, 6) as u8 + 1,
            zero_length_read: flag(raw, 22),
            fault_offset: get(raw, 24, 10) as u16 * 16,
            large_2m: flag(raw, 34),
            large_1g: flag(raw, 35),
            page_selective: flag(raw, 39),
            fault_records: get(raw, 40, 8) as u16 + 1,
            max_address_mask: get(raw, 48, 6) as u8,
            drain_writes: flag(raw, 54),
            drain_reads: flag(raw, 55),
        }
    }

    /// The register's value. A field outside its documented range is cut to its
    /// bits.
    pub const fn encode(self) -> u64 {
        put(self.domains as u64, 0, 3)
            | put(self.write_buffer_flush as u64, 4, 1)
            | put(self.protected_low as u64, 5, 1)
            | put(self.protected_high as u64, 6, 1)
            | put(self.caching_mode as u64, 7, 1)
            | put(self.width_39 as u64, 9, 1)
            | put(self.width_48 as u64, 10, 1)
            | put((self.guest_width as u64).saturating_sub(1), 16, 6)
            | put(self.zero_length_read as u64, 22, 1)
            | put(self.fault_offset as u64 / 16, 24, 10)
            | put(self.large_2m as u64, 34, 1)
            | put(self.large_1g as u64, 35, 1)
            | put(self.page_selective as u64, 39, 1)
            | put((self.fault_records as u64).saturating_sub(1), 40, 8)
            | put(self.max_address_mask as u64, 48, 6)
            | put(self.drain_writes as u64, 54, 1)
            | put(self.drain_reads as u64, 55, 1)
    }

    /// The number of domains the unit tells apart; valid numbers are below it.
    pub const fn domain_count(&self) -> u32 {
        // ND = 7 is reserved; 16 bits of number are all a context entry has.
        let bits = 4 + 2 * self.domains as u32;
        1 << if bits > 16 { 16 } else { bits }
    }

    /// Whether second-stage tables of that width are allowed.
    pub const fn supports(&self, width: AddressWidth) -> bool {
        match width {
            AddressWidth::Bits39 => self.width_39,
            AddressWidth::Bits48 => self.width_48,
        }
    }
}

/// ECAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExtendedCapabilities {
    /// C, bit 0: the unit snoops the CPU's caches when it reads its tables.
    pub coherent: bool,
    /// QI, bit 1: there is an invalidation queue.
    pub queued_invalidation: bool,
    /// DT, bit 2: devices may have TLBs of their own (ATS).
    pub device_tlb: bool,
    /// IR, bit 3: interrupts can be remapped.
    pub interrupt_remapping: bool,
    /// EIM, bit 4: to CPUs whose APIC ids have 32 bits.
    pub extended_interrupts: bool,
    /// PT, bit 6: a context entry may let a device pass untranslated.
    pub pass_through: bool,
    /// SC, bit 7: leaves may force snooping.
    pub snoop_control: bool,
    /// IRO, bits 17:8, times 16: where the registers IVA and IOTLB lie in the
    /// register window, in bytes; below 16 KiB.
    pub iotlb_offset: u16,
    /// DIT, bit 41: invalidations of device TLBs name the physical function whose queue
    /// they count against.
    pub device_tlb_throttling: bool,
    /// SMTS, bit 43: there is a scalable mode.
    pub scalable: bool,
    /// SSADS, bit 45: second-stage tables can have accessed and dirty bits.
    pub second_stage_dirty: bool,
    /// SSTS, bit 46: scalable mode has second-stage tables.
    pub second_stage: bool,
    /// FSTS, bit 47: scalable mode has first-stage tables.
    pub first_stage: bool,
    /// SMPWC, bit 48: walks of paging tables in scalable mode can snoop the CPU's
    /// caches.
    pub walk_snoops: bool,
}

impl ExtendedCapabilities {
    /// Reads the register's value.
    pub const fn decode(raw: u64) -> Self {
        Self {
            coherent: flag(raw, 0),
            queued_invalidation: flag(raw, 1),
            device_tlb: flag(raw, 2),
            interrupt_remapping: flag(raw, 3),
            extended_interrupts: flag(raw, 4),
            pass_through: flag(raw, 6),
            snoop_control: flag(raw, 7),
            iotlb_offset: get(raw, 8, 10) as u16 * 16,
            device_tlb_throttling: flag(raw, 41),
            scalable: flag(raw, 43),
            second_stage_dirty: flag(raw, 45),
            second_stage: flag(raw, 46),
            first_stage: flag(raw, 47),
            walk_snoops: flag(raw, 48),
        }
    }

    /// The register's value. A field outside its documented range is cut to its
    /// bits.
    pub const fn encode(self) -> u64 {
        put(self.coherent as u64, 0, 1)
            | put(self.queued_invalidation as u64, 1, 1)
            | put(self.device_tlb as u64, 2, 1)
            | put(self.interrupt_remapping as u64, 3, 1)
            | put(self.extended_interrupts as u64, 4, 1)
            | put(self.pass_through as u64, 6, 1)
            | put(self.snoop_control as u64, 7, 1)
            | put(self.iotlb_offset as u64 / 16, 8, 10)
            | put(self.device_tlb_throttling as u64, 41, 1)
            | put(self.scalable as u64, 43, 1)
            | put(self.second_stage_dirty as u64, 45, 1)
            | put(self.second_stage as u64, 46, 1)
            | put(self.first_stage as u64, 47, 1)
            | put(self.walk_snoops as u64, 48, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP and ECAP of QEMU 10's `intel-iommu,caching-mode=on,aw-bits=48`, put
    /// together from its documented fields.
    const QEMU_CAP: u64 =
        6 | 1 << 7 | 0b110 << 8 | 47 << 16 | 0x22 << 24 | 3 << 34 | 1 << 39 | 18 << 48 | 3 << 54;

    #[test]
    fn a_known_unit_is_read_field_by_field() {
        let cap = Capabilities::decode(QEMU_CAP);
        assert_eq!(cap.domain_count(), 65536);
        assert!(cap.caching_mode && cap.width_39 && cap.width_48);
        assert_eq!(cap.guest_width, 48);
        assert_eq!(cap.fault_offset, 0x220);
        assert_eq!(cap.fault_records, 1);
        assert!(cap.large_2m && cap.large_1g && cap.page_selective);
        assert_eq!(cap.max_address_mask, 18);
        assert!(cap.drain_reads && cap.drain_writes && !cap.write_buffer_flush);
        assert_eq!(cap.encode(), QEMU_CAP);

        let ecap = ExtendedCapabilities::decode(0xf0 << 8 | 0b11);
        assert!(ecap.coherent && ecap.queued_invalidation && !ecap.pass_through);
        assert_eq!(ecap.iotlb_offset, 0xf00);
        assert_eq!(ecap.encode(), 0xf003);
    }

    #[test]
    fn decoding_what_was_encoded_gives_the_same_fields() {
        // Every single bit, and all of them: unknown bits drop out at once.
        for raw in (0..64).map(|bit| 1u64 << bit).chain([u64::MAX]) {
            let cap = Capabilities::decode(raw);
            assert_eq!(Capabilities::decode(cap.encode()), cap);
            let ecap = ExtendedCapabilities::decode(raw);
            assert_eq!(ExtendedCapabilities::decode(ecap.encode()), ecap);
        }
    }
}
