//! The layer's rules, one by one.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod devices;
mod mapping;
mod report;

use common::format::FORMATS;
use common::world::{Config, World, with_world};
use hv_core::{Gpa, PAGE_SIZE};

/// The rules hold whatever the tables look like.
fn in_world(test: impl Fn(World<'_>)) {
    for format in FORMATS {
        let config = Config {
            format,
            ..Config::default()
        };
        with_world(config, &test);
    }
}

fn gpa(gfn: u64) -> Gpa {
    Gpa::new(gfn * PAGE_SIZE)
}
