//! Evidence where dirty bits are hidden or stored plainly, and where it starts.

use super::mutation::Mutation;
use super::variant::Variant;
use super::{Case, ONE_LEAF, Op, WHOLE_TABLE, verdict};
use iommu::dirty_mode::{DirtyHardware, DirtyUpdate};

#[test]
fn the_accessed_bit_shows_what_a_cached_read_hides() {
    use Variant::*;
    for variant in [A, B, E, F, FAccessed, G, Emulated] {
        let facts = DirtyHardware {
            read_hides_write: true,
            ..variant.facts()
        };
        for unmap in [ONE_LEAF, WHOLE_TABLE] {
            let found = verdict(variant, facts, Mutation::None, unmap);
            println!("{variant:?}, {unmap:?}: {found:?}");
            found.unwrap();
        }
    }
}

/// Once that it is found, and once that looking again is what helps.
#[test]
fn a_leaf_that_a_plain_store_brings_back_is_detached_again() {
    for variant in [Variant::F, Variant::FAccessed, Variant::Emulated] {
        verdict(variant, variant.facts(), Mutation::None, ONE_LEAF).unwrap();
        let believed = DirtyHardware {
            update: DirtyUpdate::Rechecked,
            ..variant.facts()
        };
        let found = verdict(variant, believed, Mutation::None, ONE_LEAF);
        println!("{variant:?}, not looked at again: {found:?}");
        assert!(found.is_err(), "{variant:?}");
    }
}

/// Tracking starts while devices work, with translations cached from before.
#[test]
fn starting_in_operation_clears_and_then_drains() {
    for variant in [Variant::A, Variant::E, Variant::Emulated] {
        for unmap in [ONE_LEAF, WHOLE_TABLE] {
            let case = Case::new(variant, variant.facts(), &[Op::Start, unmap]);
            case.clone().explore().unwrap();
            for mutation in [Mutation::StartKeepsCaches, Mutation::StartDoesNotWait] {
                let found = case.clone().mutated(mutation).explore();
                println!("{variant:?}, {unmap:?}, {mutation:?}: {found:?}");
                assert!(found.is_err(), "{mutation:?} is not noticed");
            }
        }
    }
}
