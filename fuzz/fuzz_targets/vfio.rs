//! `cargo fuzz run vfio`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(target) = fuzz_targets::target("vfio") {
        (target.run)(input);
    }
});
