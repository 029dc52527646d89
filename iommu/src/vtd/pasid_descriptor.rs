//! Queue descriptors that only scalable mode has (VT-d 4.1, 6.5.2.2 "PASID-Cache
//! Invalidate Descriptor" and 6.5.2.4 "PASID-based-IOTLB Invalidate Descriptor").
//!
//! ```text
//! 6 PASID-based IOTLB  127:76 address  70 IH  69:64 AM  51:32 PASID  31:16 domain  5:4 G
//! 7 PASID cache                                         51:32 PASID  31:16 domain  5:4 G
//! ```
//!
//! They have 256 bits, of which the upper 128 are reserved; so have the others
//! ([`Descriptor`](super::Descriptor)) in a queue that takes these (IQA.DW = 1).

use super::bits::{flag, get, halves, join, put};

/// A well-formed descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidDescriptor {
    /// Type 6: drop first-stage translations. Before the next wait completes, reads
    /// and writes that used them have landed: there are no flags to ask for it.
    Iotlb {
        /// DID.
        domain: u16,
        /// PASID.
        pasid: u32,
        /// Which ones.
        scope: PasidIotlbScope,
    },
    /// Type 7: drop PASID table entries.
    Cache(PasidCacheScope),
}

/// Which first-stage translations of a domain and PASID go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidIotlbScope {
    /// All; G = 10.
    All,
    /// Those of 2^AM pages; G = 11.
    Pages {
        /// ADDR: the first page. Its AM low page number bits do not count.
        address: u64,
        /// AM: log2 of the number of pages. Any unit with scalable mode takes every
        /// value, whatever CAP.MAMV says.
        order: u8,
        /// IH: only leaves have changed, entries above them may stay cached.
        leaves_only: bool,
    },
}

/// Which cached PASID table entries go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidCacheScope {
    /// Those of a domain; G = 00.
    Domain {
        /// DID.
        domain: u16,
    },
    /// All; G = 11.
    Global,
}

impl PasidDescriptor {
    /// The lower 128 bits in memory. Values outside their documented ranges are cut
    /// to their fields.
    pub const fn encode(self) -> u128 {
        match self {
            Self::Iotlb {
                domain,
                pasid,
                scope,
            } => {
                let tag = put(domain as u64, 16, 16) | put(pasid as u64, 32, 20);
                match scope {
                    PasidIotlbScope::All => join(6 | put(2, 4, 2) | tag, 0),
                    PasidIotlbScope::Pages {
                        address,
                        order,
                        leaves_only,
                    } => join(
                        6 | put(3, 4, 2) | tag,
                        address & !0xfff | put(order as u64, 0, 6) | put(leaves_only as u64, 6, 1),
                    ),
                }
            }
            Self::Cache(PasidCacheScope::Domain { domain }) => {
                join(7 | put(domain as u64, 16, 16), 0)
            }
            Self::Cache(PasidCacheScope::Global) => join(7 | put(3, 4, 2), 0),
        }
    }

    /// Reads the lower 128 bits of a descriptor of one's own making; `None` for any
    /// other.
    pub const fn decode(raw: u128) -> Option<Self> {
        let (low, high) = halves(raw);
        let domain = get(low, 16, 16) as u16;
        let pasid = get(low, 32, 20) as u32;
        let scope = match (get(low, 0, 4) | get(low, 9, 3) << 4, get(low, 4, 2)) {
            (6, 2) => PasidIotlbScope::All,
            (6, 3) => PasidIotlbScope::Pages {
                address: high & !0xfff,
                order: get(high, 0, 6) as u8,
                leaves_only: flag(high, 6),
            },
            (7, 0) => return Some(Self::Cache(PasidCacheScope::Domain { domain })),
            (7, 3) => return Some(Self::Cache(PasidCacheScope::Global)),
            _ => return None,
        };
        Some(Self::Iotlb {
            domain,
            pasid,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_documented_bits_and_read_back() {
        let pages = PasidDescriptor::Iotlb {
            domain: 5,
            pasid: 0x1_2345,
            scope: PasidIotlbScope::Pages {
                address: 0x1234_5000,
                order: 2,
                leaves_only: true,
            },
        };
        assert_eq!(pages.encode(), 0x1234_5042_0001_2345_0005_0036);
        let all = PasidDescriptor::Iotlb {
            domain: 5,
            pasid: 0,
            scope: PasidIotlbScope::All,
        };
        assert_eq!(all.encode(), 0x5_0026);
        let domain = PasidDescriptor::Cache(PasidCacheScope::Domain { domain: 9 });
        assert_eq!(domain.encode(), 0x9_0007);
        let global = PasidDescriptor::Cache(PasidCacheScope::Global);
        assert_eq!(global.encode(), 0x37);
        for descriptor in [pages, all, domain, global] {
            assert_eq!(
                PasidDescriptor::decode(descriptor.encode()),
                Some(descriptor)
            );
        }
    }

    #[test]
    fn descriptors_of_legacy_mode_are_not_among_them() {
        for kind in [1, 2, 3, 4, 5, 6, 0x16, 0x17] {
            assert_eq!(PasidDescriptor::decode(kind), None);
        }
    }
}
