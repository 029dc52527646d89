//! A guest that does anything at all to its unit and to its tables.

mod viommu_support;

use hv_core::Gpa;
use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use iommu::Iova;
use iommu::space::{Access, Mapping};
use iommu::viommu::Viommu;
use iommu::viommu::vtd::VtdViommu;
use proptest::prelude::*;
use viommu_support::*;

#[derive(Clone, Debug)]
enum Action {
    Write { offset: u64, width: u8, value: u64 },
    Poke { gpa: u64, value: u64 },
    Step { count: u16 },
    Fault { iova: u64, write: bool },
    Migrate,
}

/// Words that mean something often enough: pointers to pages of memory, with
/// rights and a few stray bits; descriptors; and plain noise.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..FRAMES + 2, 0u64..8).prop_map(|(frame, low)| frame << 12 | low),
        2 => (0..FRAMES, 0u32..64).prop_map(|(frame, bit)| frame << 12 | 3 | 1 << bit),
        3 => (1u64..6, 0u64..16, 0u64..8).prop_map(|(kind, fields, domain)|
            kind | fields << 4 | domain << 16),
        1 => any::<u64>(),
        2 => Just(0),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let width = prop_oneof![5 => Just(4u8), 5 => Just(8u8), 1 => any::<u8>()];
    // GCMD, RTADDR, CCMD, IQT, IQA and IOTLB more often than the rest.
    let offset = prop_oneof![
        Just(0x18u64),
        Just(0x20),
        Just(0x28),
        Just(0x88),
        Just(0x90),
        Just(0x108),
        (0u64..0x300).prop_map(|offset| offset & !3),
        any::<u64>(),
    ];
    let value = prop_oneof![
        word(),
        (0u64..32).prop_map(|bits| bits << 60 | bits << 29),
        (0u64..64).prop_map(|slot| slot * 16),
    ];
    prop_oneof![
        4 => (offset, width, value)
            .prop_map(|(offset, width, value)| Action::Write { offset, width, value }),
        // Root, context, both tables and the queue lie in the first eleven frames.
        6 => (1u64..11, 0u64..80, word()).prop_map(|(frame, index, value)|
            Action::Poke { gpa: (frame << 12) + index * 8, value }),
        5 => (0u16..40).prop_map(|count| Action::Step { count }),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(iova, write)| Action::Fault { iova, write }),
        1 => Just(Action::Migrate),
    ]
}

/// What a three-level table at `root` says about a page, read in the plainest way.
fn allowed(memory: &GuestMemory<'_, Arena>, root: u64, page: u64) -> Option<Mapping> {
    let (mut at, mut rights) = (root, 3);
    for level in [2, 1, 0] {
        let entry = memory
            .read_u64(Gpa::new(at + (page >> (9 * level) & 511) * 8))
            .ok()?;
        rights &= entry;
        at = entry & 0x000f_ffff_ffff_f000;
    }
    Some(Mapping {
        gfn: hv_core::Gfn::new(at >> 12),
        access: Access::new(rights & 1 != 0, rights & 2 != 0)?,
    })
}

/// One step, after which every new mapping is one that some table in memory
/// allows at this moment.
fn checked_step(machine: &mut Machine) {
    let before = machine.space.domains.clone();
    machine.step();
    for (domain, pages) in &machine.space.domains {
        let old = before.get(domain);
        for (&page, mapping) in pages {
            if old.and_then(|old| old.get(&page)) != Some(mapping) {
                let is_allowed = (0..FRAMES).any(|root| {
                    allowed(machine.memory, root << 12, page).as_ref() == Some(mapping)
                });
                assert!(is_allowed, "nothing allows {mapping:?} at page {page:#x}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_guest_does_devices_reach_only_what_its_tables_allow(
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let mut machine = Machine::translating();
        machine.space.max_pages = 600;
        for action in actions {
            match action {
                Action::Write { offset, width, value } => machine.unit.write(offset, width, value),
                Action::Poke { gpa, value } => machine.poke(gpa, value),
                Action::Step { count } => (0..count).for_each(|_| checked_step(&mut machine)),
                Action::Fault { iova, write } => {
                    let iova = Iova::new(iova);
                    machine.unit.inject_fault(machine.memory, NIC.host, iova, write);
                    let _ = machine.unit.translate(machine.memory, DISK.guest, iova, write);
                    let _ = machine.unit.take_interrupt();
                }
                Action::Migrate => {
                    let state = machine.unit.save();
                    machine.unit = VtdViommu::new(&config());
                    machine.space = FakeSpace::new();
                    machine.space.max_pages = 600;
                    prop_assert_eq!(machine.unit.restore(&state), Ok(()));
                }
            }
            for offset in (0..0x300).step_by(8) {
                let _ = machine.unit.read(offset, 8);
            }
        }
    }
}
