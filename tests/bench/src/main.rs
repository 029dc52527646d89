//! The benchmark image, as a program: see the library's documentation.
#![cfg_attr(strandline_image, no_std, no_main)]

#[cfg(strandline_image)]
mod operations;
#[cfg(strandline_image)]
mod rig;
#[cfg(strandline_image)]
mod step;

#[cfg(strandline_image)]
mod image {
    use crate::rig::Rig;
    use crate::{operations, step};
    use core::fmt::Write;
    use strandline_rt::BootInfo;
    use strandline_rt::debug_exit::{Exit, exit};
    use strandline_rt::serial::{Port, Serial};

    strandline_rt::entry!(main);

    fn main(boot: &'static BootInfo) -> ! {
        step::prepare();
        let mut output = Serial::open(Port::Com2);
        let measured = Rig::bring_up(boot).and_then(|mut rig| {
            operations::measure(&mut rig, &mut |record| {
                // A serial port cannot fail.
                let _ = writeln!(output, "{record}");
            })
        });
        match measured {
            Ok(()) => exit(Exit::Success),
            Err(error) => {
                log::error!("{error}");
                exit(Exit::Failure)
            }
        }
    }
}

#[cfg(not(strandline_image))]
fn main() {
    eprintln!("this is a bootable image: run it with `cargo xtask bench`");
}
