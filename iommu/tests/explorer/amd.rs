//! AMD's tables, on units that conduct themselves as AMD's may.

use super::mutation::Mutation;
use super::variant::Variant;
use super::{Case, ONE_LEAF, Op, TRUSTED, WHOLE_TABLE};
use iommu::dirty_mode::{DirtyHardware, DirtyUpdate};
use iommu::tables::AnyFormat;

/// What the driver says of an AMD unit that sets dirty bits.
const AMD: DirtyHardware = DirtyHardware {
    update: DirtyUpdate::Skipped,
    ..TRUSTED
};

fn case(variant: Variant, facts: DirtyHardware, ops: &[Op]) -> Case {
    Case {
        format: AnyFormat::AmdV1,
        ..Case::new(variant, facts, ops)
    }
}

#[test]
fn what_is_decided_on_is_safe_whatever_the_unit_does_with_an_entry_that_changed() {
    use Variant::*;
    for variant in [A, B, C, CWrite, E] {
        for unmap in [ONE_LEAF, WHOLE_TABLE] {
            for ops in [&[Op::Harvest, unmap][..], &[Op::Start, unmap]] {
                let found = case(variant, AMD, ops).explore();
                println!("{variant:?}, {ops:?}: {found:?}");
                found.unwrap();
            }
        }
    }
}

/// Once that it is found, and once that not to count on D is what helps.
#[test]
fn the_dirty_bit_of_a_leaf_taken_out_alone_would_lose_a_write() {
    for variant in [Variant::C, Variant::CWrite] {
        let found = case(variant, TRUSTED, &[ONE_LEAF]).explore();
        println!("{variant:?}, believed: {found:?}");
        assert_eq!(found, Err("a write that no report covers"));
        case(variant, TRUSTED, &[WHOLE_TABLE]).explore().unwrap();
    }
}

#[test]
fn every_step_is_needed_there_too() {
    use Mutation::*;
    for mutation in [NoInvalidation, NoDrain, DrainFirst, DrainAfterReturn] {
        for ops in [&[Op::Harvest, ONE_LEAF][..], &[Op::Harvest, WHOLE_TABLE]] {
            let found = case(Variant::C, AMD, ops).mutated(mutation).explore();
            println!("{mutation:?}, {ops:?}: {found:?}");
            assert!(found.is_err(), "{mutation:?} {ops:?} is not noticed");
        }
    }
}
