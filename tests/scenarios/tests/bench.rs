//! The IOMMU layer's operations cost no more than they may. Under `-icount` the
//! figures repeat exactly.

// A machine that cannot be run ends the test.
#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use xtask::bench::{self, Record};

/// What was reached, in instructions and locked operations, with a few per cent of room
/// for another compiler.
const REACHED: [(&str, u64, u64); 7] = [
    ("map-4k", 360, 1),
    ("unmap-4k", 400, 5),
    ("unmap-4k-last", 1570, 6),
    ("unmap-2m-small-leaves", 6000, 21),
    ("unmap-2048-in-one-call", 10 * 2048, 81),
    ("unmap-2048-in-one-call-scattered", 152 * 2048, 6149),
    ("harvest-nothing-writable", 50, 0),
];

#[test]
fn operations_cost_no_more_than_they_did_and_the_same_among_any_number_of_mappings() {
    let records = bench::strandline().expect("the benchmark image runs");
    for (operation, instructions, locked) in REACHED {
        let of_it = |record: &&Record| record.operation == operation;
        let record = records.iter().find(of_it).expect("measured");
        assert!(record.instructions <= instructions, "{record:?}");
        assert!(
            record.locked.is_some_and(|count| count <= locked),
            "{record:?}"
        );
    }
    one_invalidation_and_one_wait_a_call(&records);
    a_flat_curve(&records);
    reports_what_was_writable(&records);
}

#[test]
fn an_unmap_reports_every_page_written_and_with_accessed_bits_no_other() {
    let records = bench::strandline_first_stage().expect("the benchmark image runs");
    let reported = |operation| {
        let record = records.iter().find(|record| record.operation == operation);
        record.map(|record| (record.pages, record.written, record.bits))
    };
    assert_eq!(reported("written-some-of-64"), Some((64, Some(8), 8)));
    assert_eq!(reported("written-none-read-only"), Some((64, Some(0), 0)));
}

fn one_invalidation_and_one_wait_a_call(records: &[Record]) {
    for record in records.iter().filter(|record| record.written.is_none()) {
        let calls = match record.operation.as_str() {
            "unmap-4k-sweep" => record.mappings,
            operation => u64::from(operation.contains("unmap")),
        };
        assert_eq!(record.invalidations, Some(calls), "{record:?}");
        assert_eq!(record.waits, Some(calls), "{record:?}");
    }
}

fn a_flat_curve(records: &[Record]) {
    let mut costs = BTreeMap::<_, Vec<_>>::new();
    for record in records {
        if record.operation.starts_with("curve-") {
            let of_operation = costs.entry(&record.operation).or_default();
            of_operation.push((record.others, record.instructions));
        }
    }
    assert_eq!(costs.len(), 2, "mapping and unmapping");
    for (operation, curve) in costs {
        assert_eq!(curve.last().map(|(others, _)| *others), Some(1 << 20));
        let first = curve[0].1;
        assert!(
            curve.iter().all(|(_, cost)| *cost == first),
            "{operation}: {curve:?}"
        );
    }
}

fn reports_what_was_writable(records: &[Record]) {
    for record in records {
        let expected = match record.operation.as_str() {
            "unmap-4k-read-only" => 0,
            // Each call of the sweep reports its one page in the first bit.
            "unmap-4k-sweep" => 1,
            operation if operation.contains("unmap") => record.pages,
            // Without bits that tell, all that could be written.
            "written-some-of-64" => record.pages,
            _ => 0,
        };
        assert_eq!(record.bits, expected, "{record:?}");
    }
}
