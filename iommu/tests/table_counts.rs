//! The number of entries in use in a table, which says when the table may go.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::format::FORMATS;
use common::world::{Config, LARGE, World, device, with_world};
use iommu::space::Access;

/// Leaf tables with so many entries, among them those whose number a format may not
/// have the bits for.
const NUMBERS: [u64; 8] = [1, 2, 255, 256, 257, 258, 511, 512];

/// In every format, with every number.
fn with_every_table(test: impl Fn(&mut World<'_>, u64, &str)) {
    for format in FORMATS {
        for number in NUMBERS {
            let config = Config {
                format,
                ..Config::default()
            };
            let name = format!("{format:?}");
            with_world(config, |mut world| test(&mut world, number, &name));
        }
    }
}

/// Takes the entries away by twos, and looks each time whether the others are there.
#[test]
fn a_table_goes_with_its_last_entry_and_no_sooner() {
    with_every_table(|world, number, format| {
        let domain = world.domains[0];
        let frames = world.iommu.frames_available();
        for page in 0..number {
            let gfn = LARGE.start + page;
            world.map(domain, page, 1, gfn, Access::ReadWrite).unwrap();
        }
        for page in (0..number).step_by(2) {
            world.device_write(device(1), page).unwrap();
            world.unmap(domain, page, 2, true).unwrap();
            let last = number - 1;
            let seen = world.device_write(device(1), last);
            assert!(seen.is_ok(), "{format}: {page} of {number}: {seen:?}");
            let gone = frames == world.iommu.frames_available();
            assert_eq!(gone, page + 2 >= number, "{format}: {page} of {number}");
        }
        world.switch_over().unwrap();
    });
}

#[test]
fn a_table_stays_for_what_is_outside_the_range_unmapped() {
    with_every_table(|world, number, _| {
        let domain = world.domains[0];
        let frames = world.iommu.frames_available();
        for page in 512 - number..512 {
            let gfn = LARGE.start + page;
            world.map(domain, page, 1, gfn, Access::ReadWrite).unwrap();
        }
        // All but the last one, by a range that is none of the table's own.
        world.unmap(domain, 0, 511, true).unwrap();
        world.device_write(device(1), 511).unwrap();
        assert!(world.iommu.frames_available() < frames);
        world.unmap(domain, 256, 1024, true).unwrap();
        assert_eq!(world.iommu.frames_available(), frames);
        world.switch_over().unwrap();
    });
}
