//! The machine under measurement: the layer with a real VT-d unit, as a
//! hypervisor has it.
#![allow(unsafe_code)]

use hv_core::device::edu::EduError;
use hv_core::dirty::DirtyLog;
use hv_core::memory::{AddSlotError, Frame, FramePool, GuestMemory, PhysMemory, Slot};
use hv_core::mmio::Mmio;
use hv_core::{Gfn, Hpa, PAGE_SHIFT, PAGE_SIZE};
use iommu::dmar::{Dmar, DmarError};
use iommu::host::vtd::{Implementation, StartError, VtdUnit};
use iommu::layer::{MapError, TooFewPins};
use iommu::space::{DmaSpace, SpaceError};
use iommu::tables::{AnyFormat, EntryFormat, VtdSecondStage};
use iommu::unit::DomainId;
use iommu::unmap::UnmapError;
use iommu::vtd::registers::{IQA, IQT};
use iommu::{Iommu, Parts};
use spin::Once;
use strandline_bench::tally::Span;
use strandline_rt::BootInfo;
use strandline_rt::acpi::{AcpiError, DMAR, Tables};
use strandline_rt::memory_map::FreeMemory;
use strandline_rt::pci::PciError;
use strandline_rt::physical::{FirmwareMemory, IdentityMemory, MmioWindow, PhysRange};

/// Pages of the guest, and so the most that one mapping can have: 128 MiB, and
/// 2 MiB more to begin where no large leaf fits.
pub(crate) const GUEST_PAGES: u64 = (128 << 8) + 512;
/// Frames for the domains' tables: enough for 2^20 pages.
const TABLE_FRAMES: u64 = 2560;
/// Frames for the unit's own tables and its queue.
const UNIT_FRAMES: u64 = 16;
/// The size of the unit's register window.
const UNIT_BYTES: u64 = 4096;
/// Where large leaves fit.
const LARGE_PAGE: u64 = 2 << 20;

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RigError {
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Dmar(#[from] DmarError),
    #[error("the DMAR table names no unit")]
    NoUnit,
    #[error("too little memory")]
    Memory,
    #[error(transparent)]
    Slot(#[from] AddSlotError),
    #[error(transparent)]
    Pins(#[from] TooFewPins),
    #[error(transparent)]
    Unit(#[from] StartError),
    #[error(transparent)]
    Space(#[from] SpaceError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    #[error("the unit walks other tables than those to measure")]
    Tables,
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error(transparent)]
    Device(#[from] EduError),
    #[error(transparent)]
    Range(#[from] iommu::addr::RangeError),
}

/// The layer with all it stands on.
type Layer<F> = Iommu<'static, IdentityMemory, VtdUnit<'static, MmioWindow, IdentityMemory>, F>;

/// Everything measured here is done to this.
pub(crate) struct Rig<F = VtdSecondStage> {
    /// The layer, with tracking on.
    pub(crate) dma: Layer<F>,
    /// An empty domain.
    pub(crate) domain: DomainId,
    /// The guest's first frame, where a large leaf fits.
    pub(crate) first: Gfn,
    /// Where the domains' tables are.
    pub(crate) tables: Span,
    /// Where the unit's registers are.
    pub(crate) registers: Span,
    memory: &'static IdentityMemory,
    guest: &'static GuestMemory<'static, IdentityMemory>,
    queue: MmioWindow,
}

static MEMORY: Once<IdentityMemory> = Once::new();
static LOG: Once<DirtyLog<'static>> = Once::new();
static GUEST: Once<GuestMemory<'static, IdentityMemory>> = Once::new();

impl<F: EntryFormat> Rig<F> {
    /// Brings it up, with the dirty log recording and device writes tracked. `format`
    /// says how the layer is compiled for the tables that the unit walks, if it is.
    pub(crate) fn bring_up(
        boot: &'static BootInfo,
        format: impl FnOnce(AnyFormat) -> Option<F>,
    ) -> Result<Self, RigError> {
        // SAFETY: the only call.
        let mut free = unsafe { FreeMemory::at_boot(boot) };
        let mut carve = |bytes, align| free.carve(bytes, align).ok_or(RigError::Memory);
        let pins = carve(GUEST_PAGES * 4, PAGE_SIZE)?.into_counters();
        let log = carve(DirtyLog::words_needed(GUEST_PAGES) * 8, PAGE_SIZE)?.into_words();
        let mut memory = IdentityMemory::new();
        let mut frames = |count, align| {
            carve(count * PAGE_SIZE, align)?
                .into_frames(&mut memory)
                .map_err(|_| RigError::Memory)
        };
        let table_frames = frames(TABLE_FRAMES, PAGE_SIZE)?;
        let unit_frames = frames(UNIT_FRAMES, PAGE_SIZE)?;
        let guest_frames = frames(GUEST_PAGES, LARGE_PAGE)?;
        let memory = MEMORY.call_once(|| memory);
        let log = LOG.call_once(|| DirtyLog::new(log, GUEST_PAGES));

        let first = Gfn::new(0);
        let mut guest = GuestMemory::new(memory, log);
        guest.add_slot(Slot {
            gfn: first,
            hpa: Hpa::new(guest_frames.start),
            frames: GUEST_PAGES,
        })?;
        let registers = unit_range(boot)?;
        let [window, queue] = [(); 2].map(|()| {
            // SAFETY: the unit's registers, on the only CPU. The second window only
            // reads where the queue is, which has no effect.
            unsafe { MmioWindow::new(registers) }.ok_or(RigError::NoUnit)
        });
        let guest = GUEST.call_once(|| guest);
        let unit_pool = FramePool::new(Hpa::new(unit_frames.start), UNIT_FRAMES);
        let unit = VtdUnit::start(window?, memory, unit_pool, Implementation::Emulated)?;
        let mut dma = Iommu::new(Parts {
            mem: memory,
            format: format(unit.format()).ok_or(RigError::Tables)?,
            unit,
            guest,
            pool: FramePool::new(Hpa::new(table_frames.start), TABLE_FRAMES),
            pins,
        })?;
        let domain = dma.create_domain()?;
        log.start();
        dma.start_tracking().map_err(SpaceError::from)?;
        Ok(Self {
            dma,
            domain,
            first,
            tables: span(table_frames),
            registers: span(registers),
            memory,
            guest,
            queue: queue?,
        })
    }

    /// A frame of the guest.
    pub(crate) fn frame(&self, gfn: Gfn) -> Result<&'static Frame, RigError> {
        let hpa = self.guest.translate(gfn.gpa()).ok();
        let frame = hpa.and_then(|hpa| self.memory.frame(hpa));
        frame.ok_or(RigError::Memory)
    }

    /// Where the driver will write its next descriptor.
    pub(crate) fn queue_tail(&self) -> u64 {
        self.queue.read64(IQT)
    }

    /// How many descriptors were sent since the tail was at `from`: those that
    /// invalidate, and those that wait. Right for less than a queue full of them.
    pub(crate) fn sent_since(&self, from: u64) -> (u64, u64) {
        /// Bits 3:0 of a descriptor are its type (VT-d, "Invalidation Descriptors");
        /// a wait descriptor's is this.
        const WAIT: u64 = 5;
        /// Bytes of a descriptor, and of the queue: one page.
        const DESCRIPTOR: u64 = 16;
        let queue = Hpa::new(self.queue.read64(IQA) & !(PAGE_SIZE - 1));
        let Some(frame) = self.memory.frame(queue) else {
            return (0, 0);
        };
        let (mut invalidations, mut waits) = (0, 0);
        let (mut at, end) = (from, self.queue_tail());
        while at != end {
            let word = &frame.words()[at as usize / 8];
            match word.load(core::sync::atomic::Ordering::Relaxed) & 0xf {
                WAIT => waits += 1,
                _ => invalidations += 1,
            }
            at = (at + DESCRIPTOR) % PAGE_SIZE;
        }
        (invalidations, waits)
    }
}

/// Where the registers of the first unit are, according to ACPI.
fn unit_range(boot: &BootInfo) -> Result<PhysRange, RigError> {
    // SAFETY: an image on the identity map, which reads what ACPI names.
    let firmware = unsafe { FirmwareMemory::new() };
    let mut bytes = [0; 1024];
    let table = Tables::new(&firmware, boot.rsdp())?.copy(DMAR, &mut bytes)?;
    let unit = Dmar::parse(table)?.units().next();
    let base = unit.ok_or(RigError::NoUnit)?.registers.raw();
    PhysRange::new(base, UNIT_BYTES).ok_or(RigError::NoUnit)
}

fn span(range: PhysRange) -> Span {
    Span {
        start: range.start,
        end: range.end(),
    }
}

/// How many pages `bytes` are.
pub(crate) const fn pages(bytes: u64) -> u64 {
    bytes >> PAGE_SHIFT
}
