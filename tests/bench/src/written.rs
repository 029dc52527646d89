//! What is reported of pages that a device really wrote: `edu` writes some of the
//! pages that are mapped, and all are unmapped with a report.

use crate::rig::{Rig, RigError};
use core::sync::atomic::Ordering;
use hv_core::device::edu::{Edu, EduState, Staging};
use hv_core::memory::WORDS_PER_FRAME;
use hv_core::{Gfn, PAGE_SIZE};
use iommu::space::{Access, Attachment, DmaSpace};
use iommu::tables::EntryFormat;
use iommu::unit::SourceId;
use iommu::{DirtyBitmap, Iova, IovaRange};
use strandline_bench::record::Record;
use strandline_rt::pci::{ConfigPorts, EDU, Function};
use strandline_rt::physical::MmioWindow;

/// How many pages are mapped, each by itself.
const MAPPED: u64 = 64;
/// Of each so many, the device uses one.
const USES_ONE_OF: usize = 8;
/// Within the device's 28-bit DMA mask.
const FIRST_PAGE: u64 = 0x100;
/// What pages hold before: nothing that the device's buffer holds.
const BEFORE: u64 = 0x5ad5_5ad5_5ad5_5ad5;
/// How often the device is looked at before it counts as stuck, and how many
/// instructions apart: a transfer takes 100 ms, in which the machine executes 10^8.
const LOOKS: u32 = 1000;
const BETWEEN_LOOKS: u32 = 100_000;

/// Has the device write some pages of 64 that it may write, and read some of 64 that
/// it may read only, and shows what the unmap reports of either.
pub(crate) fn measure<F: EntryFormat>(
    rig: &mut Rig<F>,
    show: &mut dyn FnMut(&Record),
) -> Result<(), RigError> {
    let (edu, source) = device()?;
    rig.dma.attach(source, Attachment::Domain(rig.domain))?;
    let mut bench = Written { rig, edu };
    show(&bench.unmap("written-some-of-64", Access::ReadWrite)?);
    show(&bench.unmap("written-none-read-only", Access::Read)?);
    bench.rig.dma.attach(source, Attachment::Blocked)?;
    Ok(())
}

struct Written<'r, F> {
    rig: &'r mut Rig<F>,
    edu: Edu<MmioWindow>,
}

impl<F: EntryFormat> Written<'_, F> {
    fn unmap(&mut self, operation: &'static str, access: Access) -> Result<Record, RigError> {
        for index in 0..MAPPED {
            let page = IovaRange::new(iova(index), 1)?;
            let memory = gfn(index).gpa();
            self.rig.dma.map(self.rig.domain, page, memory, access)?;
            self.rig
                .frame(gfn(index))?
                .copy_from(&[BEFORE; WORDS_PER_FRAME]);
        }
        for index in (0..MAPPED).step_by(USES_ONE_OF) {
            self.use_page(index, access)?;
        }

        let mut words = [0; DirtyBitmap::words_needed(MAPPED) as usize];
        let mut bitmap = DirtyBitmap::new(&mut words);
        let all = IovaRange::new(iova(0), MAPPED)?;
        self.rig
            .dma
            .unmap(self.rig.domain, all, Some(&mut bitmap))?;
        let mut written = 0;
        for index in 0..MAPPED {
            let now = self.rig.frame(gfn(index))?.words()[0].load(Ordering::Relaxed);
            written += u64::from(now != BEFORE);
        }
        Ok(Record {
            operation,
            mappings: MAPPED,
            pages: MAPPED,
            bits: words.iter().map(|word| u64::from(word.count_ones())).sum(),
            written: Some(written),
            ..Record::default()
        })
    }

    /// Has the device write the page, or read it if that is all it may.
    fn use_page(&self, index: u64, access: Access) -> Result<(), RigError> {
        let page = Staging {
            frame: self.rig.frame(gfn(index))?,
            address: iova(index).raw(),
        };
        let mut looks = 0..LOOKS;
        let mut wait = || {
            for turn in 0..BETWEEN_LOOKS {
                core::hint::black_box(turn);
            }
            looks.next().is_some()
        };
        if access.writes() {
            self.edu.save(&page, &mut wait)?;
        } else {
            self.edu.restore(&READ, &page, &mut wait)?;
        }
        Ok(())
    }
}

/// A state to put into the device: for that it reads a page, once.
const READ: EduState = EduState {
    liveness: 0,
    factorial: 1,
    status: 0,
    interrupts: 0,
    dma_source: 0,
    dma_destination: 0,
    dma_count: 0,
    dma_command: 0,
    buffer: [BEFORE; WORDS_PER_FRAME],
};

const fn gfn(index: u64) -> Gfn {
    Gfn::new(index)
}

const fn iova(index: u64) -> Iova {
    Iova::new((FIRST_PAGE + index) * PAGE_SIZE)
}

/// The device, allowed to do DMA, and its requester id.
#[allow(unsafe_code)]
fn device() -> Result<(Edu<MmioWindow>, SourceId), RigError> {
    // SAFETY: an image on a PC, on its only CPU.
    let config = unsafe { ConfigPorts::new() };
    let function = Function::find(&config, EDU)?;
    function.enable(&config, true);
    // SAFETY: the registers of the device, whose DMA the unit confines; nobody else
    // uses them.
    let window = unsafe { MmioWindow::new(function.bar(&config, 0)?) };
    let edu = Edu::new(window.ok_or(RigError::Memory)?);
    Ok((edu, SourceId::new(function.requester_id())))
}
