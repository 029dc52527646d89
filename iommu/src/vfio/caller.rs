//! What the front needs of its user.
//!
//! In Linux the user is a process, and requests hold its pointers. Here it is code
//! of the embedder: an "address" is whatever number it finds its own memory by.

use super::VfioError;
use super::pin::DeviceAccess;
use crate::IovaRange;
use hv_core::Gpa;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The caller's memory.
pub trait CallerMemory {
    /// The `len` bytes at `at`, to read; `None` if they cannot be, which the
    /// caller sees as EFAULT.
    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]>;

    /// The `len` bytes at `at`, to write.
    fn bytes_mut(&mut self, at: u64, len: usize) -> Option<&mut [u8]>;

    /// Whether a buffer could lie there at all, which Linux asks of `access_ok`
    /// before it touches the memory (EINVAL, not EFAULT, if it could not).
    fn is_plausible(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some()
    }

    /// Where the `size` bytes of the guest's memory begin that the caller has at
    /// `vaddr`; `None` if they are no such memory, or not contiguous there. A
    /// caller without an address space of its own just uses guest addresses.
    fn guest_address(&self, vaddr: u64, size: u64) -> Option<Gpa>;
}

/// Devices that the hypervisor emulates.
pub trait EmulatedDevices {
    /// `range`, a whole mapping, is about to be unmapped: whoever has pinned pages
    /// there unpins them now, through `pages`.
    fn dma_unmap(&mut self, pages: &mut dyn DeviceAccess, range: IovaRange);
}

/// No devices.
impl EmulatedDevices for () {
    fn dma_unmap(&mut self, _: &mut dyn DeviceAccess, _: IovaRange) {}
}

/// Reads a structure from the caller.
pub(super) fn read<T: FromBytes>(memory: &impl CallerMemory, at: u64) -> Result<T, VfioError> {
    let bytes = memory.bytes(at, size_of::<T>()).ok_or(VfioError::Fault)?;
    T::read_from_bytes(bytes).map_err(|_| VfioError::Fault)
}

/// Writes a structure to the caller.
pub(super) fn write<T: IntoBytes + Immutable>(
    memory: &mut impl CallerMemory,
    at: u64,
    value: &T,
) -> Result<(), VfioError> {
    let bytes = memory
        .bytes_mut(at, size_of::<T>())
        .ok_or(VfioError::Fault)?;
    value.write_to(bytes).map_err(|_| VfioError::Fault)
}

/// The address `offset` bytes behind `at`.
pub(super) fn behind(at: u64, offset: usize) -> Result<u64, VfioError> {
    at.checked_add(offset as u64).ok_or(VfioError::Fault)
}
