//! The ledger guest, as a program: see the library's documentation.
#![cfg_attr(strandline_image, no_std, no_main)]

#[cfg(strandline_image)]
mod device;
#[cfg(strandline_image)]
mod garbage;
#[cfg(strandline_image)]
mod hostile;
#[cfg(strandline_image)]
mod machine;
#[cfg(strandline_image)]
mod remapping;
#[cfg(strandline_image)]
mod report;
#[cfg(strandline_image)]
mod work;

#[cfg(strandline_image)]
mod image {
    use crate::machine::Machine;
    use crate::{garbage, hostile, report, work};
    use ledger_guest::ledger::Ledger;
    use ledger_guest::options::{Mode, Options};
    use spin::Mutex;
    use strandline_rt::BootInfo;
    use strandline_rt::debug_exit::{Exit, exit};

    strandline_rt::entry!(main);

    /// The ledger that is worked by, and the one for the final replay.
    static LEDGERS: Mutex<[Ledger; 2]> = Mutex::new([const { Ledger::empty() }; 2]);

    fn main(boot: &'static BootInfo) -> ! {
        let options = match Options::parse(boot.command_line()) {
            Ok(options) => options,
            Err(error) => fail(&error),
        };
        if options.mode == Mode::Garbage
            && let Err(error) = garbage::feed(boot, options.seed)
        {
            fail(&error);
        }
        match options.mode {
            Mode::Hostile => {
                if let Err(error) = hostile::probe() {
                    fail(&error);
                }
            }
            Mode::TripleFault => hostile::triple_fault(),
            Mode::Work | Mode::Garbage | Mode::Stray | Mode::Forge => {}
        }
        let mut machine = match Machine::bring_up(boot, options.pages) {
            Ok(machine) => machine,
            Err(error) => fail(&error),
        };
        let [ledger, replay] = &mut *LEDGERS.lock();
        log::info!(
            "start: pages={} operations={} seed={}",
            machine.pages(),
            options.operations,
            options.seed
        );
        if let Err(error) = work::carry_out(&mut machine, ledger, &options) {
            fail(&error);
        }
        exit(match report::verify(&machine, replay, &options) {
            true => Exit::Success,
            false => Exit::Failure,
        })
    }

    fn fail(error: &dyn core::fmt::Display) -> ! {
        log::error!("{error}");
        exit(Exit::Failure)
    }
}

#[cfg(not(strandline_image))]
fn main() {
    eprintln!("this is a bootable image: build it with `cargo xtask build`");
}
