//! The final check.

use crate::machine::Machine;
use ledger_guest::content::WORDS;
use ledger_guest::ledger::{Ledger, Page, Writer};
use ledger_guest::options::Options;

/// How many lost pages are named at the most.
const NAMED: usize = 64;

/// Replays the plan into a fresh ledger, compares every page with it, and reports.
/// Whether everything was as it must be.
pub(crate) fn verify(machine: &Machine, replay: &mut Ledger, options: &Options) -> bool {
    replay.reset(options.seed, machine.pages());
    while replay.operations() < options.operations {
        replay.next_operation();
    }
    let (mut lost, mut device_last) = (0, 0);
    for (page, entry) in replay.entries().iter().enumerate() {
        let page = page as Page;
        device_last += usize::from(entry.writer == Writer::Device);
        if (0..WORDS).all(|word| machine.word(page, word) == entry.content.word(word)) {
            continue;
        }
        lost += 1;
        if lost <= NAMED {
            let writer = match entry.writer {
                Writer::Cpu => "cpu",
                Writer::Device => "device",
            };
            log::info!(
                "ledger: lost gfn={:#x} last={writer} operation={}",
                machine.gfn(page).number(),
                entry.operation
            );
        }
    }
    let faults = machine.faults();
    log::info!(
        "ledger: verified={} lost={lost} device_last={device_last} faults={} faults_expected={} operations={}",
        replay.entries().len() - lost,
        faults.seen,
        faults.expected,
        options.operations
    );
    lost == 0 && (faults.seen == faults.expected || !options.faults_matter)
}
