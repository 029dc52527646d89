//! What hostile input is thrown at: each target takes any bytes at all, and panics
//! if a rule is broken.
//!
//! The targets are plain functions. `cargo xtask fuzz` throws mutations of the
//! corpus in `fuzz/corpus` at them with the stable toolchain; `fuzz/` is the same
//! for `cargo fuzz`, which is guided by coverage and needs a nightly one.

// A target panics when a rule is broken: that is what is looked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acpi;
mod elf;
mod input;
pub mod mutate;
mod seed;
mod stream;
mod unit;
mod vfio;
mod viommu;
mod virtio;

/// One entrance for hostile input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on command lines, and its folder in the corpus.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "viommu",
        run: viommu::run,
    },
    Target {
        name: "virtio",
        run: virtio::run,
    },
    Target {
        name: "vfio",
        run: vfio::run,
    },
    Target {
        name: "seed",
        run: seed::run,
    },
    Target {
        name: "dmar",
        run: acpi::dmar,
    },
    Target {
        name: "ivrs",
        run: acpi::ivrs,
    },
    Target {
        name: "acpi",
        run: acpi::tables,
    },
    Target {
        name: "stream",
        run: stream::run,
    },
    Target {
        name: "elf",
        run: elf::run,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_target_has_a_corpus_and_takes_all_of_it() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        for target in TARGETS {
            let inputs: Vec<_> = std::fs::read_dir(corpus.join(target.name))
                .unwrap()
                .collect();
            assert!(!inputs.is_empty(), "{}", target.name);
            for input in inputs {
                (target.run)(&std::fs::read(input.unwrap().path()).unwrap());
            }
            (target.run)(&[]);
        }
    }
}
