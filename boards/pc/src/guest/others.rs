//! The guest's CPU that is not on the boot CPU.

use super::{Guest, GuestEnd};

/// Its number. There is at most one.
const CPU: usize = 1;

impl Guest<'_> {
    /// Does what the other CPU's guest needs, and has it go on.
    pub(super) fn serve_other(&mut self) -> Result<(), GuestEnd> {
        let Some(worker) = &self.worker else {
            return Ok(());
        };
        if let Some(back) = worker.take() {
            let event = self.with_bus(|vm, outside| vm.returned(CPU, &back, outside));
            if let Some(event) = event {
                self.act(event)?;
            }
        }
        if let Some(worker) = &self.worker {
            if let Some(order) = self.vm.order(CPU) {
                worker.send(order);
            } else if self.vm.must_call(CPU) {
                worker.call();
            }
        }
        Ok(())
    }

    /// Has the other CPU leave the guest, until the guest goes on. Whoever changes or
    /// reads what the CPUs share with hardware calls this first; [`hv_core::npt::Stopped`]
    /// insists.
    pub(super) fn stop_other(&mut self) {
        if let Some(worker) = &self.worker
            && self.vm.is_away(CPU)
        {
            let back = worker.recall();
            self.vm.recalled(CPU, &back);
        }
    }
}
