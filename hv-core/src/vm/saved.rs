//! A guest's machine as bytes: one part for each CPU and one for the devices that
//! they share. Memory is apart.

use super::Vm;
use crate::memory::PhysMemory;
use crate::platform::processors::{Processor, ProcessorState};
use crate::platform::{PlatformError, PlatformState};
use crate::vcpu::{StateError, Vcpu, VcpuState};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The state of one CPU. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuState {
    /// The CPU itself.
    pub vcpu: VcpuState,
    /// What it has of the platform.
    pub processor: ProcessorState,
    /// Zero.
    reserved: [u8; PADDING],
}

/// Up to the alignment of [`VcpuState`].
const PADDING: usize =
    size_of::<ProcessorState>().next_multiple_of(16) - size_of::<ProcessorState>();

/// Why a state from outside is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    /// The CPU's part.
    #[error(transparent)]
    Vcpu(#[from] StateError),
    /// The platform's part.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

impl<M: PhysMemory, V: Vcpu> Vm<'_, M, V> {
    /// The state of a CPU, which is not running. CPU 0 comes first: the counters of
    /// the others are taken at the same moment, so that they stay as far apart.
    pub fn save_cpu(&mut self, cpu: usize) -> CpuState {
        if cpu == 0 {
            self.moment = self.vcpu.host_tsc();
        }
        // A CPU that waits has not exited for a while.
        let own = &self.cpus[cpu];
        let mut vcpu = own.state;
        vcpu.tsc = self.moment.wrapping_add(own.tsc_offset);
        CpuState {
            vcpu,
            processor: self.platform.cpus.get(cpu).save(),
            reserved: [0; PADDING],
        }
    }

    /// The state of what the CPUs share.
    pub fn save_platform(&self) -> PlatformState {
        self.platform.save()
    }

    /// Takes over a CPU from another machine, CPU 0 first. It is checked before: on an
    /// error nothing changes.
    pub fn restore_cpu(&mut self, cpu: usize, state: &CpuState) -> Result<(), RestoreError> {
        state.vcpu.validate()?;
        let processor =
            Processor::restored(cpu as u32, &state.processor).ok_or(PlatformError::Apic)?;
        *self.platform.cpus.get(cpu) = processor;
        if cpu == 0 {
            self.moment = self.vcpu.host_tsc();
        }
        let own = &mut self.cpus[cpu];
        own.state = state.vcpu;
        own.tsc_offset = state.vcpu.tsc.wrapping_sub(self.moment);
        Ok(())
    }

    /// Takes over what the CPUs share. It is checked before: on an error nothing
    /// changes.
    pub fn restore_platform(&mut self, state: &PlatformState) -> Result<(), RestoreError> {
        Ok(self.platform.restore(state)?)
    }
}
