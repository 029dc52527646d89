//! `cargo fuzz run elf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(target) = fuzz_targets::target("elf") {
        (target.run)(input);
    }
});
