//! Checks the flags an image relies on, and tells image packages where the
//! linker script is.

use std::env;

/// Flags of `boards/image.toml` without which an image builds, but misbehaves.
const VITAL_FLAGS: [&str; 3] = [
    "relocation-model=static",
    "code-model=small",
    "no-redzone=yes",
];

fn main() {
    let script = format!(
        "{}/image.ld",
        env::var("CARGO_MANIFEST_DIR").unwrap_or_default()
    );
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::metadata=script={script}");

    if env::var_os("CARGO_CFG_STRANDLINE_IMAGE").is_some() {
        let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
        for flag in VITAL_FLAGS {
            if !flags.split('\x1f').any(|given| given == flag) {
                println!(
                    "cargo::error=an image needs -C {flag}: build with --config boards/image.toml and without RUSTFLAGS"
                );
            }
        }
    }
}
