//! The hypervisor image for PCs: start-up, and what is done in which role.
#![cfg_attr(strandline_image, no_std, no_main)]

#[cfg(strandline_image)]
mod image;

#[cfg(not(strandline_image))]
fn main() {
    eprintln!("this is a bootable image: build it with `cargo xtask build`");
    std::process::exit(2);
}
