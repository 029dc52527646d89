//! What the engine asks of the machine that will run the guest.

use crate::VmError;
use crate::stream::{Config, Refusal, SectionInfo};
use core::task::Poll;
use hv_core::Gfn;
use hv_core::memory::Frame;

/// The destination's machine. The engine calls it in the order of these methods.
pub trait DestinationVm {
    /// Makes room for the guest, or says why it cannot: too much memory, a section
    /// it does not know. On an error nothing is left behind.
    fn prepare(&mut self, config: &Config) -> Result<(), Refusal>;

    /// The frame that holds `gfn`: there is one for each that `config` named. What
    /// it holds before the first page arrives does not matter.
    fn frame(&self, gfn: Gfn) -> Option<&Frame>;

    /// The audit found that this page differs from the source's. All pages are
    /// named, in the order of the config's memory.
    fn mismatch(&mut self, gfn: Gfn);

    /// Takes one section of state, in the order that `config` named them. All
    /// memory is there already. `bytes` come from the other machine: check them.
    fn load(&mut self, info: SectionInfo, bytes: &[u8]) -> Result<(), VmError>;

    /// All state is there: builds whatever follows from it, a bounded piece at each
    /// call, for what the guest asked of its devices can be more than the source
    /// waits for. Once it is ready, [`DestinationVm::start`] cannot fail.
    fn complete(&mut self) -> Poll<Result<(), VmError>>;

    /// Runs the guest. The source never will again.
    fn start(&mut self);

    /// Throws the guest away. Called on a failure at any point after
    /// [`DestinationVm::prepare`] succeeded and before the start.
    fn discard(&mut self);
}
