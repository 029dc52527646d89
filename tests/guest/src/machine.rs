//! The guest's machine: memory, its IOMMU, and the device behind it.
#![allow(unsafe_code)]

use crate::device::{Edu, VECTOR};
use crate::remapping::{self, AnyRemapping, Virtio, VirtioError, Vtd};
use hv_core::dirty::DirtyLog;
use hv_core::memory::{AddSlotError, Frame, GuestMemory, PhysMemory, Slot};
use hv_core::platform::apic::{ApicIdTooLarge, Msi};
use hv_core::{Gfn, Hpa, PAGE_SHIFT, PAGE_SIZE};
use iommu::addr::RangeError as IovaRangeError;
use iommu::dmar::DmarError;
use iommu::host::vtd::StartError;
use iommu::layer::{MapError, TooFewPins};
use iommu::space::{Access, SpaceError};
use iommu::unit::SourceId;
use iommu::unmap::UnmapError;
use iommu::{Iova, IovaRange};
use ledger_guest::ledger::{MAX_PAGES, Page};
use spin::Once;
use strandline_rt::BootInfo;
use strandline_rt::acpi::{AcpiError, Signature, Tables};
use strandline_rt::apic::{LocalApic, Mode, NoX2Apic};
use strandline_rt::memory_map::FreeMemory;
use strandline_rt::pci::{ConfigPorts, EDU, Function, PciError};
use strandline_rt::physical::{FirmwareMemory, IdentityMemory, MmioWindow, PhysRange};

/// Frames for the IOMMU's tables and queue.
const TABLE_FRAMES: u64 = 256;
/// Fewer pages make too small a ledger.
const MIN_PAGES: u64 = 64;

/// Why the machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Dmar(#[from] DmarError),
    #[error("ACPI names no IOMMU for the device")]
    NoUnit,
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error("this is no edu device")]
    NoEdu,
    #[error(transparent)]
    Apic(#[from] NoX2Apic),
    #[error(transparent)]
    ApicId(#[from] ApicIdTooLarge),
    #[error("too little memory")]
    Memory,
    #[error(transparent)]
    Slot(#[from] AddSlotError),
    #[error(transparent)]
    Pins(#[from] TooFewPins),
    #[error(transparent)]
    Unit(#[from] StartError),
    #[error("virtio-iommu: {0}")]
    Virtio(#[from] VirtioError),
    #[error(transparent)]
    Space(#[from] SpaceError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    #[error(transparent)]
    Range(#[from] IovaRangeError),
}

/// Refused transfers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Those the IOMMU reported, of this device.
    pub(crate) seen: u64,
    /// Those the guest provoked.
    pub(crate) expected: u64,
}

/// Everything the guest works with.
pub(crate) struct Machine {
    /// The device.
    pub(crate) edu: Edu,
    iommu: AnyRemapping,
    memory: &'static IdentityMemory,
    arena: PhysRange,
    faults: Faults,
}

static MEMORY: Once<IdentityMemory> = Once::new();
static LOG: Once<DirtyLog<'static>> = Once::new();
static ARENA: Once<GuestMemory<'static, IdentityMemory>> = Once::new();

impl Machine {
    /// Brings everything up, as an operating system would: memory, ACPI, the IOMMU
    /// with the device attached to an empty domain, then the device. At most
    /// `pages` pages are put in play.
    pub(crate) fn bring_up(boot: &'static BootInfo, pages: usize) -> Result<Self, MachineError> {
        // SAFETY: the only call.
        let mut free = unsafe { FreeMemory::at_boot(boot) };
        let mut carve = |bytes| free.carve(bytes, PAGE_SIZE).ok_or(MachineError::Memory);
        let tables = carve(TABLE_FRAMES * PAGE_SIZE)?;
        // Frames are numbered from address 0, so these cover more than the arena.
        let frames = boot.regions().iter().map(|region| region.range.end());
        let frames = frames.filter(|end| *end <= 1 << 32).max().unwrap_or(0) >> PAGE_SHIFT;
        let pins = carve(frames * 4)?.into_counters();
        let log_words = carve(DirtyLog::words_needed(frames) * 8)?.into_words();
        let pages = (free.largest(PAGE_SIZE) >> PAGE_SHIFT).min(pages.min(MAX_PAGES) as u64);
        if pages < MIN_PAGES {
            return Err(MachineError::Memory);
        }
        let arena = free.carve(pages * PAGE_SIZE, PAGE_SIZE);
        let arena = arena.ok_or(MachineError::Memory)?;

        let mut memory = IdentityMemory::new();
        let table_range = tables
            .into_frames(&mut memory)
            .map_err(|_| MachineError::Memory)?;
        let arena = arena
            .into_frames(&mut memory)
            .map_err(|_| MachineError::Memory)?;
        let memory = MEMORY.call_once(|| memory);
        let log = LOG.call_once(|| DirtyLog::new(log_words, frames));

        let mut guest = GuestMemory::new(memory, log);
        guest.add_slot(Slot {
            gfn: Gfn::new(arena.start >> PAGE_SHIFT),
            hpa: Hpa::new(arena.start),
            frames: pages,
        })?;
        let (config, function) = find_device()?;
        let source = SourceId::new(function.requester_id());
        let apic = LocalApic::enable(Mode::X2Apic)?;
        let mut iommu = match remapping::find_virtio(boot) {
            Some(unit) => AnyRemapping::Virtio(Virtio::start(unit, source, &apic)?),
            None => {
                let memory = remapping::Memory {
                    memory,
                    arena: ARENA.call_once(|| guest),
                    tables: table_range,
                    pins,
                };
                AnyRemapping::Vtd(Vtd::start(boot, source, memory)?)
            }
        };

        iommu.get().attach(0)?;
        function.enable(&config, true);
        function.enable_msi(&config, Msi::fixed(apic.id(), VECTOR)?)?;
        let edu = Edu::new(registers(function.bar(&config, 0)?)?).ok_or(MachineError::NoEdu)?;
        Ok(Self {
            edu,
            iommu,
            memory,
            arena,
            faults: Faults::default(),
        })
    }

    /// How many pages are in play.
    pub(crate) fn pages(&self) -> usize {
        (self.arena.bytes >> PAGE_SHIFT) as usize
    }

    /// The frame that holds a page.
    pub(crate) fn gfn(&self, page: Page) -> Gfn {
        Gfn::new((self.arena.start >> PAGE_SHIFT) + u64::from(page))
    }

    /// Writes a whole page.
    pub(crate) fn fill(&mut self, page: Page, word: impl Fn(usize) -> u64) {
        if let Some(frame) = self.frame(page) {
            frame.copy_from(&core::array::from_fn(word));
        }
    }

    /// Reads one word of a page.
    pub(crate) fn word(&self, page: Page, index: usize) -> u64 {
        let word = self.frame(page).and_then(|frame| frame.words().get(index));
        word.map_or(0, |word| word.load(core::sync::atomic::Ordering::Relaxed))
    }

    /// Maps a page in the device's current domain.
    pub(crate) fn map(
        &mut self,
        iova: Iova,
        page: Page,
        access: Access,
    ) -> Result<(), MachineError> {
        let range = IovaRange::new(iova, 1)?;
        let gpa = self.gfn(page).gpa();
        self.iommu.get().map(range, gpa, access)
    }

    /// Unmaps pages in the device's current domain.
    pub(crate) fn unmap(&mut self, iova: Iova, pages: u64) -> Result<(), MachineError> {
        let range = IovaRange::new(iova, pages)?;
        self.iommu.get().unmap(range)
    }

    /// Attaches the device to another domain.
    pub(crate) fn switch(&mut self, domain: usize) -> Result<(), MachineError> {
        self.iommu.get().attach(domain)
    }

    /// Takes the faults the IOMMU recorded, when `expected` more were provoked.
    pub(crate) fn take_faults(&mut self, expected: u64) {
        self.faults.expected += expected;
        while let Some(fault) = self.iommu.get().take_fault() {
            if fault.write {
                self.faults.seen += 1;
            } else {
                log::warn!("a fault nobody provoked: a read at {}", fault.iova);
            }
        }
    }

    /// The faults so far.
    pub(crate) fn faults(&self) -> Faults {
        self.faults
    }

    fn frame(&self, page: Page) -> Option<&'static Frame> {
        self.memory.frame(Hpa::new(self.gfn(page).gpa().raw()))
    }
}

/// The device, and the ports to configure it.
pub(crate) fn find_device() -> Result<(ConfigPorts, Function), PciError> {
    // SAFETY: an image on a PC, on its only CPU.
    let config = unsafe { ConfigPorts::new() };
    let function = Function::find(&config, EDU)?;
    Ok((config, function))
}

/// An ACPI table, copied to `to`.
pub(crate) fn table<'b>(
    boot: &BootInfo,
    signature: Signature,
    to: &'b mut [u8],
) -> Result<&'b [u8], MachineError> {
    // SAFETY: an image on the identity map, which reads what ACPI names.
    let firmware = unsafe { FirmwareMemory::new() };
    Ok(Tables::new(&firmware, boot.rsdp())?.copy(signature, to)?)
}

/// A window on registers that ACPI or PCI named.
pub(crate) fn registers(range: PhysRange) -> Result<MmioWindow, MachineError> {
    // SAFETY: registers of one device, and this guest runs on the only CPU and
    // drops one driver before it starts the next; DMA goes where the guest's own
    // IOMMU lets it.
    unsafe { MmioWindow::new(range) }.ok_or(MachineError::NoUnit)
}
