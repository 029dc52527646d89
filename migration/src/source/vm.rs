//! What the engine asks of the machine that runs the guest.

use crate::VmError;
use crate::stream::SectionInfo;
use core::task::Poll;
use hv_core::Gfn;
use hv_core::dirty::DirtyLog;
use hv_core::memory::{Frame, Slot};

/// The source's machine. The engine calls it in the order of these methods.
pub trait SourceVm {
    /// The guest's memory. Must not change while it migrates.
    fn slots(&self) -> &[Slot];

    /// The content of a guest frame, or `None` where the guest has no memory.
    fn frame(&self, gfn: Gfn) -> Option<&Frame>;

    /// The log that all writers mark.
    fn log(&self) -> &DirtyLog<'_>;

    /// The sections of state that will be saved, in that order. At most
    /// [`MAX_SECTIONS`](crate::stream::MAX_SECTIONS); fixed while it migrates.
    fn sections(&self) -> &[SectionInfo];

    /// Starts the log and every tracker behind it. From its return on, every write
    /// to guest memory, by whomever, is marked. On an error nothing is tracked.
    fn start_tracking(&mut self) -> Result<(), VmError>;

    /// Stops all of that. Called when migration fails.
    fn stop_tracking(&mut self);

    /// Brings marks that wait elsewhere (dirty bits in nested page tables) into the
    /// log. Called before each round.
    fn harvest(&mut self);

    /// How many pages a device can still write at present. They are marked only in
    /// [`SourceVm::final_harvest`], so the engine adds them to what will remain.
    fn device_writable_pages(&self) -> u64;

    /// How long saving and restoring the devices takes, in microseconds: the part
    /// of the downtime that does not depend on memory.
    fn device_downtime_us(&self) -> u64;

    /// Stops the guest's CPUs.
    fn pause(&mut self);

    /// Brings the devices to rest; called until it is ready. From then on nothing
    /// writes to guest memory.
    fn quiesce(&mut self) -> Poll<Result<(), VmError>>;

    /// Marks everything written since the last harvest, by CPUs and devices, and
    /// every page a device could still write.
    fn final_harvest(&mut self);

    /// Writes the state of section `index` to the front of `to` and returns its
    /// length. The guest stays able to resume.
    fn save(&mut self, index: usize, to: &mut [u8]) -> Result<usize, VmError>;

    /// Whether there is more to save of section `index` than was saved so far,
    /// because it did not fit.
    fn has_more(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// Goes on where the last call for this section stopped: writes at least one
    /// byte to the front of `to` and returns how many. Called while
    /// [`SourceVm::has_more`] says so.
    fn save_more(&mut self, index: usize, to: &mut [u8]) -> Result<usize, VmError> {
        let _ = (index, to);
        Err(VmError("the section has no more to save"))
    }

    /// Undoes [`SourceVm::pause`] and a finished or unfinished
    /// [`SourceVm::quiesce`]: the guest runs on here.
    fn resume(&mut self);
}
