//! The test guest.
#![cfg_attr(strandline_image, no_std, no_main)]

#[cfg(strandline_image)]
mod image {
    use strandline_rt::BootInfo;
    use strandline_rt::debug_exit::{Exit, exit};

    strandline_rt::entry!(main);

    fn main(boot: &'static BootInfo) -> ! {
        log::info!("guest: started with \"{}\"", boot.command_line());
        exit(Exit::Success)
    }
}

#[cfg(not(strandline_image))]
fn main() {
    eprintln!("this is a bootable image: build it with `cargo xtask build`");
    std::process::exit(2);
}
