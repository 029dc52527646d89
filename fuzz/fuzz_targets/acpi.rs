//! `cargo fuzz run acpi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(target) = fuzz_targets::target("acpi") {
        (target.run)(input);
    }
});
