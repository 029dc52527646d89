//! Devices with TLBs of their own.

use super::mutation::Mutation;
use super::variant::Variant;
use super::{Case, ONE_LEAF, Op, TRUSTED, WHOLE_TABLE};

const WITH_TLBS: [Variant; 2] = [Variant::Ats, Variant::AtsAtomic];

#[test]
fn a_device_tlb_is_invalidated_and_after_the_units_own() {
    for variant in WITH_TLBS {
        for unmap in [ONE_LEAF, WHOLE_TABLE] {
            for mutation in [Mutation::DevicesKeepTheirs, Mutation::DevicesFirst] {
                let found = Case::new(variant, TRUSTED, &[unmap])
                    .mutated(mutation)
                    .explore();
                println!("{variant:?}, {unmap:?}, {mutation:?}: {found:?}");
                assert_eq!(found, Err("an access after the unmap returned"));
            }
        }
    }
}

#[test]
fn a_harvest_invalidates_device_tlbs_too() {
    for variant in WITH_TLBS {
        let case = Case::new(variant, TRUSTED, &[Op::Harvest, Op::Harvest]);
        let states = case.explore().unwrap();
        println!("{variant:?}: {states} states");
        for mutation in [Mutation::DevicesKeepTheirs, Mutation::DevicesFirst] {
            let found = case.clone().mutated(mutation).explore();
            println!("{variant:?}, {mutation:?}: {found:?}");
            assert_eq!(found, Err("a write that no report covers"));
        }
    }
}
