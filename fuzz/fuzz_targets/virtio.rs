//! `cargo fuzz run virtio`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(target) = fuzz_targets::target("virtio") {
        (target.run)(input);
    }
});
