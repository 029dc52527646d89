//! `cargo fuzz run ivrs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(target) = fuzz_targets::target("ivrs") {
        (target.run)(input);
    }
});
