//! Carries the plan out on the machine.

use crate::device::Direction;
use crate::machine::{Machine, MachineError};
use hv_core::PAGE_SIZE;
use iommu::Iova;
use iommu::space::Access;
use iommu::vtd::InterruptRequest;
use ledger_guest::content::WORDS;
use ledger_guest::ledger::{Ledger, Operation, Page};
use ledger_guest::options::{Mode, Options};

/// How often progress is shown, in operations.
const PROGRESS: u32 = 100;

/// An IOVA that no slot uses.
const NOWHERE: Iova = Iova::new(0x0ff0_0000);

/// An entry of the host's interrupt remapping table that nobody has.
const FORGED_ENTRY: u16 = 100;
/// A vector of the host that nobody has.
const FORGED_VECTOR: u64 = 0x77;

/// Where slot `slot` begins. The second slot straddles two leaf tables.
const fn slot_iova(slot: usize) -> u64 {
    0x100_0000 + slot as u64 * 0x1f_f000
}

fn page_iova(slot: usize, index: usize) -> Iova {
    Iova::new(slot_iova(slot) + index as u64 * PAGE_SIZE)
}

/// Fills the pages, then does as many operations as the options say.
pub(crate) fn carry_out(
    machine: &mut Machine,
    ledger: &mut Ledger,
    options: &Options,
) -> Result<(), MachineError> {
    ledger.reset(options.seed, machine.pages());
    for (page, entry) in ledger.entries().iter().enumerate() {
        machine.fill(page as Page, |word| entry.content.word(word));
    }
    while ledger.operations() < options.operations {
        let operation = ledger.next_operation();
        if options.mode == Mode::Forge
            && let Operation::Load { slot, page } = operation
        {
            let content = ledger.entries()[usize::from(page)].content;
            forge(machine, page_iova(slot, 0), page)?;
            machine.fill(page, |word| content.word(word));
        }
        perform(machine, operation)?;
        if options.mode == Mode::Stray && ledger.operations().is_multiple_of(8) {
            stray(machine)?;
        }
        if ledger.operations().is_multiple_of(PROGRESS) {
            log::info!("progress: operations={}", ledger.operations());
        }
    }
    Ok(())
}

fn perform(machine: &mut Machine, operation: Operation) -> Result<(), MachineError> {
    match operation {
        Operation::Write { page, stamp } => machine.fill(page, |word| stamp.word(word)),
        Operation::Load { slot, page } => {
            machine.map(page_iova(slot, 0), page, Access::Read)?;
            machine
                .edu
                .start(Direction::Load, page_iova(slot, 0), PAGE_SIZE as usize);
            machine.edu.finish();
            machine.unmap(page_iova(slot, 0), 1)?;
        }
        Operation::Map { slot, pages } => {
            for (index, page) in pages.into_iter().enumerate() {
                machine.map(page_iova(slot, index), page, Access::ReadWrite)?;
            }
        }
        Operation::Store { slot, offset, len } => {
            let iova = Iova::new(slot_iova(slot) + offset as u64 * 8);
            machine.edu.start(Direction::Store, iova, len * 8);
            machine.edu.finish();
        }
        Operation::Unmap { slot } => machine.unmap(page_iova(slot, 0), 2)?,
        Operation::Abandon { slot, page, stamp } => {
            let iova = page_iova(slot, 0);
            machine.map(iova, page, Access::Write)?;
            machine.edu.start(Direction::Store, iova, WORDS * 8);
            machine.unmap(iova, 1)?;
            // Whether or not the transfer came first, from here on the page is the
            // CPU's, and the device must not write to it any more.
            let refused = machine.edu.is_busy();
            machine.fill(page, |word| stamp.word(word));
            machine.edu.finish();
            machine.take_faults(u64::from(refused));
        }
        Operation::Forbidden { slot, page } => {
            let iova = page_iova(slot, 0);
            machine.map(iova, page, Access::Read)?;
            machine.edu.start(Direction::Store, iova, WORDS * 8);
            machine.edu.finish();
            machine.take_faults(1);
            machine.unmap(iova, 1)?;
        }
        Operation::Switch { domain } => machine.switch(domain)?,
    }
    Ok(())
}

/// A transfer to where nothing is mapped: refused, and nothing else happens.
fn stray(machine: &mut Machine) -> Result<(), MachineError> {
    machine.edu.start(Direction::Store, NOWHERE, WORDS * 8);
    machine.edu.finish();
    machine.take_faults(1);
    Ok(())
}

/// The device interrupts the host with a message that it was not granted. The vector
/// is in its buffer, which it loads from a page that is overwritten; a load of the
/// whole buffer is to follow. The bits of the address that matter without remapping
/// name the first CPU.
fn forge(machine: &mut Machine, iova: Iova, page: Page) -> Result<(), MachineError> {
    let message = InterruptRequest::message(FORGED_ENTRY);
    machine.fill(page, |_| FORGED_VECTOR);
    machine.map(iova, page, Access::Read)?;
    machine.edu.start(Direction::Load, iova, 4);
    machine.edu.finish();
    machine.unmap(iova, 1)?;
    machine
        .edu
        .start(Direction::Store, Iova::new(message.address), 4);
    machine.edu.finish();
    Ok(())
}
