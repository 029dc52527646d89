//! `edu`: registers that the guest reaches directly, and a state that the device
//! itself has to copy out.

use super::Lender;
use crate::guest::{get, put};
use hv_core::device::edu::{self, Edu, EduError, EduState, Staging};
use hv_core::memory::PhysMemory;
use hv_core::platform::apic::Msi;
use hv_core::{Hpa, PAGE_SIZE};
use iommu::space::SpaceError;
use iommu::{Iova, IovaRange};
use log::error;
use migration::VmError;
use strandline_rt::cpu;
use strandline_rt::physical::{IdentityMemory, MmioWindow};

/// Where the device finds the staging page; within its 28-bit DMA mask.
const STAGING_IOVA: Iova = Iova::new(PAGE_SIZE);
/// How many interrupts, ticks mostly, a transfer of the device's state may take.
const PATIENCE: u32 = 2000;
/// How long to wait after each, in turns of a loop: QEMU's device computes its factorial
/// in a thread, for which a machine that halts leaves no time if its clock then leaps to
/// the next tick.
const PAUSES: u32 = 200;

/// What is needed to read the device's state out and to put it back.
pub(super) struct EduHandover<'m> {
    edu: Edu<MmioWindow>,
    memory: &'m IdentityMemory,
    /// A page of the hypervisor.
    staging: Hpa,
    /// The state of the guest's device while it is not in the device: read out and
    /// not put back, or arrived and not put in yet.
    state: Option<EduState>,
    /// What the device sends to interrupt the host.
    message: Msi,
}

/// Why the device's state could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum HandoverError {
    #[error(transparent)]
    Device(#[from] EduError),
    #[error(transparent)]
    Space(#[from] SpaceError),
}

impl HandoverError {
    /// Notes the details, which the engine's error has no room for.
    fn for_engine(self) -> VmError {
        error!("moving the device's state: {self}");
        VmError("the device's state cannot be moved")
    }
}

impl<'m> EduHandover<'m> {
    /// How long saving and restoring take, in microseconds.
    pub(super) const DOWNTIME_US: u64 = edu::STATE_TRANSFER_US;

    /// The device behind `registers`, with a page of the hypervisor for its state, and
    /// with `message` for its interrupt.
    pub(super) fn new(
        registers: MmioWindow,
        memory: &'m IdentityMemory,
        staging: Hpa,
        message: Msi,
    ) -> Self {
        Self {
            edu: Edu::new(registers),
            memory,
            staging,
            state: None,
            message,
        }
    }

    /// What the device sends to interrupt the host.
    pub(super) fn message(&self) -> Msi {
        self.message
    }

    pub(super) fn is_resting(&mut self) -> bool {
        self.edu.is_resting()
    }

    pub(super) fn save(
        &mut self,
        lender: &mut Lender<'_, '_>,
        to: &mut [u8],
    ) -> Result<usize, VmError> {
        let mut saved = None;
        let done = self.with_device(lender, |edu, staging, mut relax| {
            saved = Some(edu.save(staging, &mut relax)?);
            Ok(())
        });
        // Whatever else went wrong, what was read out can be put back.
        self.state = saved;
        done.map_err(HandoverError::for_engine)?;
        let state = saved
            .as_ref()
            .ok_or(VmError("the device's state was not read"))?;
        put(state, to)
    }

    pub(super) fn load(&mut self, bytes: &[u8]) -> Result<(), VmError> {
        self.state = Some(get(bytes)?);
        Ok(())
    }

    pub(super) fn restore(&mut self, lender: &mut Lender<'_, '_>) -> Result<(), VmError> {
        let Some(state) = self.state.take() else {
            return Ok(());
        };
        self.with_device(lender, |edu, staging, mut relax| {
            edu.restore(&state, staging, &mut relax)
        })
        .map_err(HandoverError::for_engine)
    }

    /// Has the device reach the staging page and nothing else while `act` runs.
    fn with_device<T>(
        &self,
        lender: &mut Lender<'_, '_>,
        act: impl FnOnce(
            &Edu<MmioWindow>,
            &Staging<'_>,
            &mut dyn FnMut() -> bool,
        ) -> Result<T, EduError>,
    ) -> Result<T, HandoverError> {
        let Lender {
            host,
            source_id,
            dma,
        } = lender;
        let range = IovaRange::new(STAGING_IOVA, 1).map_err(|_| SpaceError::OutOfRange)?;
        let loan = dma.borrow_device(*source_id, [(range, self.staging)])?;
        // The guest may not have let it do DMA.
        host.device.function.enable(&host.config, true);
        let result = self.transfer(act);
        dma.give_back(loan)?;
        Ok(result?)
    }

    fn transfer<T>(
        &self,
        act: impl FnOnce(
            &Edu<MmioWindow>,
            &Staging<'_>,
            &mut dyn FnMut() -> bool,
        ) -> Result<T, EduError>,
    ) -> Result<T, EduError> {
        let frame = self.memory.frame(self.staging).ok_or(EduError::Stuck)?;
        let staging = Staging {
            frame,
            address: STAGING_IOVA.raw(),
        };
        let mut patience = PATIENCE;
        act(&self.edu, &staging, &mut || {
            // The tick wakes it, however long the device takes.
            cpu::halt_until_interrupt();
            (0..PAUSES).for_each(|_| cpu::pause());
            patience = patience.saturating_sub(1);
            patience > 0
        })
    }
}
