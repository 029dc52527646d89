//! Which CPU a guest has: the features and the MSRs that it finds, as data.
//!
//! A bit of CPUID is offered only if the host has it and [`OFFERS`] names it, so a
//! feature nobody thought of stays hidden. Not offered are: SVM (no nested guests),
//! XSAVE and all that needs it (AVX and later), RDTSCP and RDPID (TSC_AUX is not
//! switched), MONITOR, PCID and INVPCID, the TSC-deadline timer, performance counters.
//! An MSR that is not in [`MSRS`] is #GP.
//!
//! AMD64 Architecture Programmer's Manual: volume 3, appendix E (CPUID); volume 2,
//! appendix A (MSRs).

use core::ops::RangeInclusive;

/// The bits of one leaf that are passed through.
pub(super) struct Offer {
    pub(super) leaf: u32,
    pub(super) eax: u32,
    pub(super) ebx: u32,
    pub(super) ecx: u32,
    pub(super) edx: u32,
}

/// A leaf that is passed through whole.
const fn whole(leaf: u32) -> Offer {
    offer(leaf, [u32::MAX; 4])
}

const fn offer(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Offer {
    Offer {
        leaf,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT,
/// AES, RDRAND.
const LEAF_1_ECX: u32 =
    1 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 25 | 1 << 30;
/// Leaf 1 EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA,
/// CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2. MTRR and MCA are there for kernels
/// that use PAT or complain without; what they offer is in [`MSRS`].
const LEAF_1_EDX: u32 = 0x3ff
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 7 << 23
    | 1 << 26;
/// Leaf 7 EBX: FSGSBASE, BMI1, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT,
/// CLWB, SHA.
const LEAF_7_EBX: u32 =
    1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 7 << 18 | 1 << 23 | 1 << 24 | 1 << 29;
/// Leaf 8000_0001h ECX: LAHF, LZCNT, SSE4A, misaligned SSE, PREFETCHW.
const EXTENDED_ECX: u32 = 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
/// Leaf 8000_0001h EDX: those of leaf 1, SYSCALL, NX, MMXEXT, 1 GiB pages, LM.
const EXTENDED_EDX: u32 =
    (LEAF_1_EDX & 0x0183_f3ff) | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 26 | 1 << 29;

/// Leaf 8000_0007h EDX: the time stamp counters run at one rate, and never stop. Those of
/// a guest's CPUs are as far ahead of the host's as one another, and stay so when it
/// moves.
const INVARIANT_TSC: u32 = 1 << 8;

/// The leaves of CPUID; those that are not listed read as zero, but for the largest
/// leaf, the hypervisor's signature, and what tells one CPU of a guest from another.
pub(super) const OFFERS: [Offer; 10] = [
    offer(1, [u32::MAX, 0x0000_ff00, LEAF_1_ECX, LEAF_1_EDX]),
    offer(7, [0, LEAF_7_EBX, 0, 0]),
    offer(0x8000_0001, [u32::MAX, 0, EXTENDED_ECX, EXTENDED_EDX]),
    whole(0x8000_0002),
    whole(0x8000_0003),
    whole(0x8000_0004),
    whole(0x8000_0005),
    whole(0x8000_0006),
    offer(0x8000_0007, [0, 0, 0, INVARIANT_TSC]),
    offer(0x8000_0008, [0xffff, 0, 0, 0]),
];

/// What a guest finds at an MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Msr {
    /// The time stamp counter.
    TimeStamp,
    /// The local APIC's place and mode.
    ApicBase,
    /// The page attribute table.
    Pat,
    /// Extended features.
    Efer,
    /// A register of the local APIC in x2APIC mode.
    X2Apic,
    /// This value, and a write is #GP.
    ReadOnly(u64),
    /// This value, and what is written is dropped.
    Constant(u64),
}

/// The MSRs that exit, in ascending order.
pub(super) const MSRS: [(RangeInclusive<u32>, Msr); 14] = [
    one(0x10, Msr::TimeStamp),
    one(0x1b, Msr::ApicBase),
    // PATCH_LEVEL: kernels ask before they look whether there is microcode to load.
    one(0x8b, Msr::Constant(0)),
    // MTRRcap: write-combining, and no range. Memory is write-back, as PAT refines it.
    one(0xfe, Msr::ReadOnly(1 << 10)),
    // MCG_CAP: machine checks, and no bank to report them; MCG_STATUS: none happened.
    one(0x179, Msr::ReadOnly(0)),
    one(0x17a, Msr::Constant(0)),
    // MISC_ENABLE: Intel's, which kernels read on every CPU.
    one(0x1a0, Msr::Constant(0)),
    one(0x277, Msr::Pat),
    // MTRRdefType: enabled, write-back.
    one(0x2ff, Msr::Constant(1 << 11 | 6)),
    (0x800..=0x8ff, Msr::X2Apic),
    one(0xc000_0080, Msr::Efer),
    // SYSCFG, HWCR, NB_CFG: read by kernels before they ask whether they exist. HWCR has
    // TscFreqSel: the counter's rate does not follow the power states.
    one(0xc001_0010, Msr::Constant(0)),
    one(0xc001_0015, Msr::Constant(1 << 24)),
    one(0xc001_001f, Msr::Constant(0)),
];

const fn one(number: u32, msr: Msr) -> (RangeInclusive<u32>, Msr) {
    (number..=number, msr)
}

/// What there is at `number`, if anything.
pub(super) fn msr(number: u32) -> Option<Msr> {
    let mut msrs = MSRS.iter();
    let found = msrs.find(|(numbers, _)| numbers.contains(&number));
    found.map(|(_, msr)| *msr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_msr_is_listed_twice() {
        let pairs = MSRS.iter().zip(MSRS.iter().skip(1));
        for ((before, _), (after, _)) in pairs {
            assert!(before.end() < after.start(), "{after:x?}");
        }
    }
}
