//! What the README promises of the image, and the image itself.

// A test that cannot take place fails.
#![allow(clippy::expect_used)]

use scenarios::execute;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use xtask::image::{self, Image};
use xtask::run::Run;

const README: &str = include_str!("../../../README.md");
/// The largest stripped image that is still one for appliance firmware.
const MAX_IMAGE_BYTES: u64 = 512 << 10;

#[test]
fn the_stripped_image_has_less_than_512_kib() {
    let image = image::build(Image::Pc, &[]).expect("it builds");
    let bytes = fs::metadata(&image).expect("it was built").len();
    assert!(bytes < MAX_IMAGE_BYTES, "{bytes} bytes");
}

#[test]
fn the_readme_has_the_budget_that_the_image_prints() {
    let outcome = execute(&Run::new("budget"));
    let promised = rows_of_readme();
    assert!(promised.len() > 5, "{promised:?}");
    assert_eq!(promised, rows_of_log(&outcome.logs.join("source.log")));
}

/// Part and KiB, from lines like `  nested page tables   256 KiB at 0x10ef000`.
fn rows_of_log(log: &Path) -> BTreeMap<String, u64> {
    let log = fs::read_to_string(log).expect("the machine logs");
    log.lines()
        .filter(|line| line.starts_with("  "))
        .filter_map(|line| line.split_once(" KiB"))
        .filter_map(|(row, _)| row.trim().rsplit_once(' '))
        .filter_map(|(part, kib)| Some((part.trim().to_owned(), kib.parse().ok()?)))
        .collect()
}

/// Part and KiB, from the rows of the table under "Memory".
fn rows_of_readme() -> BTreeMap<String, u64> {
    let (_, section) = README.split_once("### Memory").expect("there is one");
    let (section, _) = section.split_once("\n## ").unwrap_or((section, ""));
    section
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let (part, kib) = (cells.next()?, cells.next()?);
            Some((part.to_owned(), kib.replace(',', "").parse().ok()?))
        })
        .collect()
}
