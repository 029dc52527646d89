//! Links the image to run at 2 MiB, as kernels do.

fn main() {
    if std::env::var_os("CARGO_CFG_STRANDLINE_IMAGE").is_some() {
        let script = std::env::var("DEP_STRANDLINE_RT_SCRIPT").unwrap_or_default();
        println!("cargo::rerun-if-changed={script}");
        println!("cargo::rustc-link-arg-bins=-Wl,--defsym=image_base=0x200000");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}
