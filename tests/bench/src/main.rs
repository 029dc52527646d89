//! The benchmark image, as a program: see the library's documentation.
#![cfg_attr(strandline_image, no_std, no_main)]

#[cfg(strandline_image)]
mod operations;
#[cfg(strandline_image)]
mod rig;
#[cfg(strandline_image)]
mod step;
#[cfg(strandline_image)]
mod written;

#[cfg(strandline_image)]
mod image {
    use crate::rig::{Rig, RigError};
    use crate::{operations, step, written};
    use core::fmt::Write;
    use iommu::tables::{AnyFormat, VtdSecondStage};
    use strandline_bench::record::Record;
    use strandline_rt::BootInfo;
    use strandline_rt::debug_exit::{Exit, exit};
    use strandline_rt::serial::{Port, Serial};

    strandline_rt::entry!(main);

    fn main(boot: &'static BootInfo) -> ! {
        step::prepare();
        let mut output = Serial::open(Port::Com2);
        let mut show = |record: &Record| {
            // A serial port cannot fail.
            let _ = writeln!(output, "{record}");
        };
        let measured = match boot.command_line() {
            WRITTEN_ONLY => written_only(boot, &mut show),
            _ => everything(boot, &mut show),
        };
        match measured {
            Ok(()) => exit(Exit::Success),
            Err(error) => {
                log::error!("{error}");
                exit(Exit::Failure)
            }
        }
    }

    /// On the command line: to find out only what is reported of written pages,
    /// whatever tables the unit walks.
    const WRITTEN_ONLY: &str = "written-only";

    /// What operations cost is measured on second-stage tables without dirty bits, for
    /// which the layer is compiled then.
    fn everything(boot: &'static BootInfo, show: &mut dyn FnMut(&Record)) -> Result<(), RigError> {
        let format = |unit| (unit == AnyFormat::VtdSecondStage).then_some(VtdSecondStage);
        let mut rig = Rig::bring_up(boot, format)?;
        operations::measure(&mut rig, show)?;
        written::measure(&mut rig, show)
    }

    fn written_only(
        boot: &'static BootInfo,
        show: &mut dyn FnMut(&Record),
    ) -> Result<(), RigError> {
        let mut rig = Rig::bring_up(boot, Some)?;
        written::measure(&mut rig, show)
    }
}

#[cfg(not(strandline_image))]
fn main() {
    eprintln!("this is a bootable image: run it with `cargo xtask bench`");
}
