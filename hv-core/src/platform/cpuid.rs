//! CPUID: the host's bits through the list of `policy`, and this hypervisor's own.

use super::policy::OFFERS;
use crate::vcpu::VcpuState;
use crate::vcpu::gpr::{RAX, RBX, RCX, RDX};
use raw_cpuid::CpuIdResult;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Executes CPUID on the host with a leaf and a subleaf.
pub type HostCpuid = fn(u32, u32) -> CpuIdResult;

/// The leaf of the hypervisor's signature.
const SIGNATURE_LEAF: u32 = 0x4000_0000;
/// The signature, as EBX, ECX, EDX spell it.
const SIGNATURE: [u8; 12] = *b"StrandlineHV";
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: x2APIC. Ours, whatever the host has.
const X2APIC: u32 = 1 << 21;

/// Leaf 1 EDX: there may be more than one CPU in this package.
const HTT: u32 = 1 << 28;

/// Which of how many CPUs asks. All are cores of one package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// The CPU's number, which is its APIC's id.
    pub id: u32,
    /// How many there are, at least 1.
    pub count: u32,
}

/// The leaves whose answers a guest may rely on for as long as it runs: all that come
/// from the host.
fn leaves() -> impl Iterator<Item = u32> {
    let offered = OFFERS.iter().map(|offer| offer.leaf);
    [0, 0x8000_0000].into_iter().chain(offered)
}

/// What a guest was told of its CPUs. It never asks again, so a machine that would
/// answer otherwise must not go on with it. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuidState {
    /// EAX, EBX, ECX and EDX of each leaf.
    answers: [[u32; 4]; OFFERS.len() + 2],
}

impl CpuidState {
    /// What a guest is told on this host.
    pub fn of(host: HostCpuid) -> Self {
        let mut answers = [[0; 4]; OFFERS.len() + 2];
        let alone = Topology { id: 0, count: 1 };
        for (place, leaf) in answers.iter_mut().zip(leaves()) {
            let answer = answer(leaf, 0, alone, host);
            *place = [answer.eax, answer.ebx, answer.ecx, answer.edx];
        }
        Self { answers }
    }

    /// The first leaf that `other` has another answer to.
    pub fn difference(&self, other: &Self) -> Option<u32> {
        let pairs = self.answers.iter().zip(&other.answers);
        let mut leaves = pairs.zip(leaves());
        let found = leaves.find(|((ours, theirs), _)| ours != theirs);
        found.map(|(_, leaf)| leaf)
    }
}

/// Carries out CPUID for the guest.
pub fn execute(state: &mut VcpuState, topology: Topology, host: HostCpuid) {
    let result = answer(state.gpr32(RAX), state.gpr32(RCX), topology, host);
    state.gpr[RAX] = u64::from(result.eax);
    state.gpr[RBX] = u64::from(result.ebx);
    state.gpr[RCX] = u64::from(result.ecx);
    state.gpr[RDX] = u64::from(result.edx);
}

/// What a guest reads from a leaf. Leaves not listed read as zero.
pub fn answer(leaf: u32, subleaf: u32, topology: Topology, host: HostCpuid) -> CpuIdResult {
    let zero = CpuIdResult {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    match leaf {
        0 | 0x8000_0000 => CpuIdResult {
            eax: if leaf == 0 { 7 } else { 0x8000_0008 },
            ..host(leaf, 0)
        },
        SIGNATURE_LEAF => {
            let word =
                |at: usize| u32::from_le_bytes(core::array::from_fn(|byte| SIGNATURE[at + byte]));
            CpuIdResult {
                eax: SIGNATURE_LEAF,
                ebx: word(0),
                ecx: word(4),
                edx: word(8),
            }
        }
        7 if subleaf != 0 => zero,
        _ => OFFERS
            .iter()
            .find(|offer| offer.leaf == leaf)
            .map_or(zero, |offer| {
                let host = host(leaf, subleaf);
                let ours = own_bits(leaf, topology);
                CpuIdResult {
                    eax: host.eax & offer.eax | ours.eax,
                    ebx: host.ebx & offer.ebx | ours.ebx,
                    ecx: host.ecx & offer.ecx | ours.ecx,
                    edx: host.edx & offer.edx | ours.edx,
                }
            }),
    }
}

/// What a leaf says of this hypervisor and its guest, whatever the host is: AMD64
/// Architecture Programmer's Manual volume 3, appendix E.3.2 and E.4.7.
fn own_bits(leaf: u32, topology: Topology) -> CpuIdResult {
    let Topology { id, count } = topology;
    let is_several = count > 1;
    let (ebx, ecx, edx) = match leaf {
        1 => (
            id << 24 | if is_several { count << 16 } else { 0 },
            HYPERVISOR | X2APIC,
            if is_several { HTT } else { 0 },
        ),
        // NC, the cores less one, and the bits of an APIC id that number cores.
        0x8000_0008 if is_several => {
            let id_bits = u32::BITS - (count - 1).leading_zeros();
            (0, id_bits << 12 | (count - 1), 0)
        }
        _ => (0, 0, 0),
    };
    CpuIdResult {
        eax: 0,
        ebx,
        ecx,
        edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Topology = Topology { id: 0, count: 1 };

    /// A host that has everything.
    fn all(_: u32, _: u32) -> CpuIdResult {
        CpuIdResult {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        }
    }

    #[test]
    fn what_the_guest_cannot_have_is_hidden_even_if_the_host_has_it() {
        let one = answer(1, 0, ONE, all);
        for hidden in [3, 5, 17, 24, 26, 27, 28] {
            assert_eq!(one.ecx & 1 << hidden, 0, "leaf 1 ECX {hidden}");
        }
        for hidden in [10, 18, 20, 21, 28] {
            assert_eq!(one.edx & 1 << hidden, 0, "leaf 1 EDX {hidden}");
        }
        assert_eq!(one.ebx >> 24, 0, "the APIC id is 0");
        let extended = answer(0x8000_0001, 0, ONE, all);
        assert_eq!(extended.ecx & 1 << 2, 0, "SVM");
        assert_eq!(extended.edx & 1 << 27, 0, "RDTSCP");
        assert_ne!(extended.edx & 1 << 29, 0, "long mode");
        assert_ne!(extended.edx & 1 << 20, 0, "NX");
        for leaf in [0xd, 0x14, 0x8000_000a, 0x8000_001f, 0x4000_0001] {
            let result = answer(leaf, 0, ONE, all);
            assert_eq!([result.eax, result.ebx, result.ecx, result.edx], [0; 4]);
        }
    }

    #[test]
    fn the_guest_is_told_that_it_runs_under_this_hypervisor() {
        assert_ne!(answer(1, 0, ONE, all).ecx & HYPERVISOR, 0);
        assert_eq!(
            answer(SIGNATURE_LEAF, 0, ONE, all).ebx.to_le_bytes(),
            *b"Stra"
        );
    }

    #[test]
    fn a_host_that_answers_otherwise_is_found_by_the_leaf() {
        let here = CpuidState::of(all);
        assert_eq!(here.difference(&CpuidState::of(all)), None);
        let without_sha = |leaf, subleaf| CpuIdResult {
            ebx: if leaf == 7 { !(1 << 29) } else { u32::MAX },
            ..all(leaf, subleaf)
        };
        assert_eq!(here.difference(&CpuidState::of(without_sha)), Some(7));
        let more_than_offered = |leaf, subleaf| CpuIdResult {
            ebx: if leaf == 7 { !(1 << 16) } else { u32::MAX },
            ..all(leaf, subleaf)
        };
        let hidden = CpuidState::of(more_than_offered);
        assert_eq!(here.difference(&hidden), None, "AVX-512 is not offered");
    }

    #[test]
    fn each_cpu_reads_its_own_id_and_how_many_there_are() {
        let second = Topology { id: 1, count: 2 };
        let one = answer(1, 0, second, all);
        assert_eq!(one.ebx >> 16, 1 << 8 | 2);
        assert_ne!(one.edx & HTT, 0);
        assert_eq!(answer(0x8000_0008, 0, second, all).ecx, 1 << 12 | 1);
        assert_eq!(answer(0x8000_0008, 0, ONE, all).ecx, 0);
    }
}
