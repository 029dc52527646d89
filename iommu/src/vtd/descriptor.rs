//! Queue descriptors of 128 bits (VT-d 4.1, 6.5.2 "Queued Invalidation
//! Interface").
//!
//! Bits 3:0 and 11:9 are the type; bits 5:4 the granularity where there is one.
//! The drawings give the fields of each type; everything else is reserved.
//!
//! ```text
//! 1 context cache   49:48 FM  47:32 source  31:16 domain  5:4 G
//! 2 IOTLB           127:76 address  70 IH  69:64 AM  31:16 domain  7 DR  6 DW  5:4 G
//! 3 device TLB      127:76 address  64 S  63:52,15:12 PFSID  47:32 source  20:16 MIP
//! 4 interrupt cache 47:32 index  31:27 IM  4 G
//! 5 wait            127:66 status address  63:32 status data  7 PD  6 FN  5 SW  4 IF
//! ```

use super::bits::{flag, get, halves, join, put};
use crate::page_block::PageBlock;
use crate::unit::SourceId;

/// Which cached context entries go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextCacheScope {
    /// All; G = 01.
    Global,
    /// Those tagged with a domain; G = 10.
    Domain {
        /// DID.
        domain: u16,
    },
    /// Those of one function or of a few; G = 11.
    Device {
        /// DID: the domain the entry was tagged with (0 for absent entries in
        /// caching mode).
        domain: u16,
        /// SID.
        source: SourceId,
        /// FM, from 0 to 3: how many of the function number's bits, from its
        /// highest one down, do not matter.
        function_mask: u8,
    },
}

/// Which cached translations go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IotlbScope {
    /// All; G = 01.
    Global,
    /// Those of a domain; G = 10.
    Domain {
        /// DID.
        domain: u16,
    },
    /// Those of 2^AM pages of a domain; G = 11.
    Pages {
        /// DID.
        domain: u16,
        /// ADDR: the first page. Its AM low page number bits do not count.
        address: u64,
        /// AM: log2 of the number of pages, from 0 to CAP.MAMV.
        order: u8,
        /// IH: only leaves have changed, entries above them may stay cached.
        leaves_only: bool,
    },
}

/// Which cached interrupt remapping entries go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptCacheScope {
    /// All; G = 0.
    Global,
    /// 2^IM entries from IIDX on; G = 1.
    Entries {
        /// IIDX: the first entry.
        index: u16,
        /// IM: log2 of their number, from 0 to 31.
        order: u8,
    },
}

/// What a wait descriptor writes to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusWrite {
    /// The 32-bit word's address, a multiple of 4.
    pub address: u64,
    /// The value.
    pub data: u32,
}

/// A well-formed descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// Type 1: drop context entries.
    ContextCache(ContextCacheScope),
    /// Type 2: drop translations.
    Iotlb {
        /// Which ones.
        scope: IotlbScope,
        /// DR: before it completes, reads that used them have been answered.
        drain_reads: bool,
        /// DW: before it completes, writes that used them are visible to the
        /// CPUs. Either flag counts only where CAP offers it.
        drain_writes: bool,
    },
    /// Type 3: have a device drop translations from its own TLB.
    DeviceTlb {
        /// SID.
        source: SourceId,
        /// MIP: how many invalidations the device takes before it has answered the
        /// first, from 1 to 32; the field's 0 is 32.
        pending: u8,
        /// PFSID: the physical function of `source`, on a unit with ECAP.DIT; 0 on
        /// others.
        physical: SourceId,
        /// ADDR and S as in the ATS message.
        block: PageBlock,
    },
    /// Type 4: drop interrupt remapping entries.
    InterruptCache(InterruptCacheScope),
    /// Type 5: report that everything before it has completed.
    Wait {
        /// SW: the word to write, if any.
        status: Option<StatusWrite>,
        /// IF: raise the invalidation event.
        interrupt: bool,
        /// FN: nothing after it starts before it has completed.
        fence: bool,
    },
}

/// Why a descriptor is malformed. The unit stops at it with FSTS.IQE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DescriptorError {
    /// No descriptor of legacy mode has this type.
    #[error("unknown descriptor type {0}")]
    UnknownType(u8),
    /// The granularity field holds its reserved value.
    #[error("reserved granularity")]
    Granularity,
    /// A reserved bit is set.
    #[error("reserved bit set")]
    Reserved,
}

impl Descriptor {
    /// A descriptor's size in bytes.
    pub const SIZE: usize = 16;

    /// Reads a descriptor. Whether its address mask is within CAP.MAMV is left to
    /// the caller.
    pub const fn decode(raw: u128) -> Result<Self, DescriptorError> {
        let (low, high) = halves(raw);
        let kind = get(low, 0, 4) | get(low, 9, 3) << 4;
        let reserved = match kind {
            1 => (0xfffc_0000_0000_f1c0, u64::MAX),
            2 => (0xffff_ffff_0000_f100, 0xf80),
            3 => (0x000f_0000_ffe0_01f0, 0xffe),
            4 => (0xffff_0000_07ff_f1e0, u64::MAX),
            // PD (bit 7) belongs to page requests, which need scalable mode.
            5 => (0xffff_f180, 0x3),
            _ => return Err(DescriptorError::UnknownType(kind as u8)),
        };
        if low & reserved.0 != 0 || high & reserved.1 != 0 {
            return Err(DescriptorError::Reserved);
        }
        let granularity = get(low, 4, 2);
        let domain = get(low, 16, 16) as u16;
        let source = SourceId::new(get(low, 32, 16) as u16);
        Ok(match kind {
            1 => Self::ContextCache(match granularity {
                1 => ContextCacheScope::Global,
                2 => ContextCacheScope::Domain { domain },
                3 => ContextCacheScope::Device {
                    domain,
                    source,
                    function_mask: get(low, 48, 2) as u8,
                },
                _ => return Err(DescriptorError::Granularity),
            }),
            2 => Self::Iotlb {
                scope: match granularity {
                    1 => IotlbScope::Global,
                    2 => IotlbScope::Domain { domain },
                    3 => IotlbScope::Pages {
                        domain,
                        address: high & !0xfff,
                        order: get(high, 0, 6) as u8,
                        leaves_only: flag(high, 6),
                    },
                    _ => return Err(DescriptorError::Granularity),
                },
                drain_reads: flag(low, 7),
                drain_writes: flag(low, 6),
            },
            3 => Self::DeviceTlb {
                source,
                pending: match get(low, 16, 5) as u8 {
                    0 => 32,
                    pending => pending,
                },
                physical: SourceId::new(get(low, 12, 4) as u16 | (get(low, 52, 12) as u16) << 4),
                block: PageBlock::decode(high),
            },
            4 => Self::InterruptCache(if flag(low, 4) {
                InterruptCacheScope::Entries {
                    index: get(low, 32, 16) as u16,
                    order: get(low, 27, 5) as u8,
                }
            } else {
                InterruptCacheScope::Global
            }),
            _ => Self::Wait {
                status: if flag(low, 5) {
                    Some(StatusWrite {
                        address: high,
                        data: get(low, 32, 32) as u32,
                    })
                } else {
                    None
                },
                interrupt: flag(low, 4),
                fence: flag(low, 6),
            },
        })
    }

    /// The descriptor in memory. Values outside their documented ranges are cut
    /// to their fields.
    #[inline(always)]
    pub const fn encode(self) -> u128 {
        match self {
            Self::ContextCache(scope) => {
                let fields = match scope {
                    ContextCacheScope::Global => put(1, 4, 2),
                    ContextCacheScope::Domain { domain } => {
                        put(2, 4, 2) | put(domain as u64, 16, 16)
                    }
                    ContextCacheScope::Device {
                        domain,
                        source,
                        function_mask,
                    } => {
                        put(3, 4, 2)
                            | put(domain as u64, 16, 16)
                            | put(source.raw() as u64, 32, 16)
                            | put(function_mask as u64, 48, 2)
                    }
                };
                join(1 | fields, 0)
            }
            Self::Iotlb {
                scope,
                drain_reads,
                drain_writes,
            } => {
                let drain = put(drain_writes as u64, 6, 1) | put(drain_reads as u64, 7, 1);
                let (fields, high) = match scope {
                    IotlbScope::Global => (put(1, 4, 2), 0),
                    IotlbScope::Domain { domain } => (put(2, 4, 2) | put(domain as u64, 16, 16), 0),
                    IotlbScope::Pages {
                        domain,
                        address,
                        order,
                        leaves_only,
                    } => (
                        put(3, 4, 2) | put(domain as u64, 16, 16),
                        address & !0xfff | put(order as u64, 0, 6) | put(leaves_only as u64, 6, 1),
                    ),
                };
                join(2 | drain | fields, high)
            }
            Self::DeviceTlb {
                source,
                pending,
                physical,
                block,
            } => {
                let physical = physical.raw() as u64;
                let low = 3
                    | put(physical, 12, 4)
                    | put(pending as u64, 16, 5)
                    | put(source.raw() as u64, 32, 16)
                    | put(physical >> 4, 52, 12);
                join(low, block.encode())
            }
            Self::InterruptCache(scope) => {
                let fields = match scope {
                    InterruptCacheScope::Global => 0,
                    InterruptCacheScope::Entries { index, order } => {
                        1 << 4 | put(order as u64, 27, 5) | put(index as u64, 32, 16)
                    }
                };
                join(4 | fields, 0)
            }
            Self::Wait {
                status,
                interrupt,
                fence,
            } => {
                let flags = put(interrupt as u64, 4, 1) | put(fence as u64, 6, 1);
                match status {
                    Some(StatusWrite { address, data }) => join(
                        5 | flags | 1 << 5 | put(data as u64, 32, 32),
                        address & !0x3,
                    ),
                    None => join(5 | flags, 0),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: SourceId = SourceId::new(0x0010);

    #[test]
    fn descriptors_have_the_documented_bits() {
        let device = Descriptor::ContextCache(ContextCacheScope::Device {
            domain: 5,
            source: SOURCE,
            function_mask: 0,
        });
        assert_eq!(device.encode(), 0x10_0005_0031);
        let pages = Descriptor::Iotlb {
            scope: IotlbScope::Pages {
                domain: 5,
                address: 0x1234_5000,
                order: 2,
                leaves_only: false,
            },
            drain_reads: true,
            drain_writes: true,
        };
        assert_eq!(pages.encode(), 0x1234_5002_0000_0000_0005_00f2);
        let wait = Descriptor::Wait {
            status: Some(StatusWrite {
                address: 0x8_0004,
                data: 7,
            }),
            interrupt: false,
            fence: true,
        };
        assert_eq!(wait.encode(), 0x8_0004_0000_0007_0000_0065);
        let device_tlb = Descriptor::DeviceTlb {
            source: SOURCE,
            pending: 5,
            physical: SourceId::new(0x1234),
            block: PageBlock { page: 4, order: 2 },
        };
        assert_eq!(device_tlb.encode(), 0x5001 << 64 | 0x1230_0010_0005_4003);
        for descriptor in [device, pages, wait, device_tlb] {
            assert_eq!(Descriptor::decode(descriptor.encode()), Ok(descriptor));
        }
    }

    #[test]
    fn reserved_types_granularities_and_bits_are_malformed() {
        for kind in [0, 6, 7, 8, 9, 15] {
            assert_eq!(
                Descriptor::decode(kind),
                Err(DescriptorError::UnknownType(kind as u8))
            );
        }
        assert_eq!(
            Descriptor::decode(1 | 1 << 9),
            Err(DescriptorError::UnknownType(0x11))
        );
        for kind in [1, 2] {
            assert_eq!(Descriptor::decode(kind), Err(DescriptorError::Granularity));
        }
        for (kind, bits) in [(0x11, 50), (0x11, 64), (0x12, 32), (0x12, 71), (5, 65)] {
            let raw = kind | 1 << bits;
            assert_eq!(Descriptor::decode(raw), Err(DescriptorError::Reserved));
        }
    }

    proptest::proptest! {
        #[test]
        fn what_decodes_encodes_to_something_that_decodes_alike(
            kind in 1u128..6, granularity in 0u128..4, raw: u128,
        ) {
            // Sparse words, so that a fair share has no reserved bit set.
            let sparse = raw & raw.rotate_left(64) & 0xffff_ffff_ffff_f0ff_0003_ffff_ffff_00c0;
            let raw = sparse | granularity << 4 | kind;
            if let Ok(descriptor) = Descriptor::decode(raw) {
                proptest::prop_assert_eq!(
                    Descriptor::decode(descriptor.encode()), Ok(descriptor));
            }
        }
    }
}
