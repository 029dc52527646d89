//! What the operator is told of the guest and its device.

use super::Guest;
use crate::{events, vectors};
use iommu::unit::Fault;
use log::{error, info};
use strandline_rt::interrupts::VectorSet;

/// How many faults are named in the log one by one.
const NAMED_FAULTS: u64 = 16;

impl Guest<'_> {
    /// Tells the operator of vectors that nobody here sends: a device sent them that
    /// nothing holds back.
    pub(super) fn note_strangers(&self, taken: VectorSet) {
        for vector in taken.iter().filter(|it| !vectors::is_known(*it)) {
            error!("an interrupt that nobody was granted: vector {vector:#x}");
            events::emit("stray-interrupt", &[("vector", u64::from(vector).into())]);
        }
    }

    /// Tells the operator of pages that the guest maps for its device and that it cannot
    /// have there: it may wonder why its device faults.
    pub(super) fn report_refused(&mut self) {
        let refused = self.viommu.refused_pages();
        let count = refused.saturating_sub(self.refused);
        if count > 0 {
            if self.refused == 0 {
                info!("the guest maps pages for its device that are refused");
            }
            self.refused = refused;
            events::emit("refused-mapping", &[("count", count.into())]);
        }
    }

    /// Names the first faults, and then ever fewer of them: a guest can provoke any
    /// number.
    pub(super) fn log_fault(&self, fault: &Fault) {
        if self.faults > NAMED_FAULTS && !self.faults.is_power_of_two() {
            return;
        }
        info!("fault {}: {fault}", self.faults);
    }
}
