//! A guest with passthrough devices, and a migration that follows the dirty log.

use super::format::{FORMATS, Format};
use super::migration::Migration;
use super::oracle::{Mapped, Oracle};
use super::unit::{Fault, Hardware};
use hv_core::dirty::DirtyLog;
use hv_core::memory::{FramePool, GuestMemory, Slot};
use hv_core::sabotage::{Sabotage, is_active};
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, Hpa, PAGE_SIZE};
use iommu::layer::MapError;
use iommu::space::{Access, Attachment, DmaSpace, Mapping, SpaceError};
use iommu::unit::{DomainId, SourceId};
use iommu::unmap::{UnmapError, Unmapped};
use iommu::{DirtyBitmap, Iommu, Iova, IovaRange, Parts};
use std::ops::Range;
use std::sync::atomic::AtomicU64;

/// Guest frames in two slots that meet there, but not in host memory.
pub const SMALL: Range<u64> = 0..40;
const SMALL_SLOTS: [Range<u64>; 2] = [0..32, 32..40];
/// Guest frames of a slot whose first 512 a large leaf can map.
pub const LARGE: Range<u64> = 1024..1540;
const GUEST_FRAMES: u64 = 516 + 40;
const MEMORY: Hpa = Hpa::new(0x4000_0000);

/// A write was lost or came late, or the layer and the oracle disagree.
pub type Violation = String;

pub struct World<'m> {
    pub iommu: Iommu<'m, Arena, &'m Hardware<'m>, Format>,
    pub hardware: &'m Hardware<'m>,
    pub guest: &'m GuestMemory<'m, Arena>,
    pub log: &'m DirtyLog<'m>,
    pub oracle: Oracle,
    pub domains: Vec<DomainId>,
    pub migration: &'m Migration<'m>,
    config: Config,
    identity_was_used: bool,
    /// For a model that must notice: what an unmap reports does not arrive.
    pub drops_unmap_reports: bool,
}

/// How a world is made.
#[derive(Clone, Copy)]
pub struct Config {
    pub format: Format,
    pub levels: u8,
    pub table_frames: u64,
    pub caches_absent: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: FORMATS[0],
            levels: 4,
            table_frames: 64,
            caches_absent: false,
        }
    }
}

/// Runs `test` in a new world with two domains, device 1 attached to the first,
/// and tracking on.
pub fn with_world<R>(config: Config, test: impl FnOnce(World<'_>) -> R) -> R {
    // One more than the guest and the tables take: see `World::staging`.
    let arena = Arena::new(MEMORY, (GUEST_FRAMES + config.table_frames + 1) as usize);
    let words: Vec<AtomicU64> = std::iter::repeat_with(AtomicU64::default)
        .take(DirtyLog::words_needed(LARGE.end) as usize)
        .collect();
    let log = DirtyLog::new(&words, LARGE.end);
    let mut guest = GuestMemory::new(&arena, &log);
    let at = |frames: u64| Hpa::new(MEMORY.raw() + frames * PAGE_SIZE);
    let [low, high] = SMALL_SLOTS;
    for (frames, hpa) in [(LARGE, at(0)), (high, at(516)), (low, at(516 + 8))] {
        let gfn = Gfn::new(frames.start);
        let frames = frames.end - frames.start;
        guest.add_slot(Slot { gfn, hpa, frames }).unwrap();
    }
    let migration = Migration::new(&guest);
    let mut hardware = Hardware::new(&arena, &migration, config.levels, config.format.format);
    hardware.caches_absent = config.caches_absent;
    let mut pins = vec![0; LARGE.end as usize];
    let mut iommu = Iommu::new(Parts {
        mem: &arena,
        format: config.format,
        unit: &hardware,
        guest: &guest,
        pool: FramePool::new(at(GUEST_FRAMES), config.table_frames),
        pins: &mut pins,
    })
    .unwrap();
    let domains: Vec<_> = (0..2).map(|_| iommu.create_domain().unwrap()).collect();
    log.start();
    iommu.start_tracking().unwrap();
    let mut world = World {
        iommu,
        hardware: &hardware,
        guest: &guest,
        log: &log,
        oracle: Oracle::default(),
        domains: domains.clone(),
        migration: &migration,
        config,
        identity_was_used: false,
        drops_unmap_reports: false,
    };
    world
        .attach(device(1), Attachment::Domain(domains[0]))
        .unwrap();
    test(world)
}

pub fn device(number: u16) -> SourceId {
    SourceId::new(number << 3)
}

pub fn iova(page: u64) -> Iova {
    Iova::new(page * PAGE_SIZE)
}

pub fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::new(iova(page), pages).unwrap()
}

impl World<'_> {
    /// A page of the hypervisor's, which is no guest memory.
    pub fn staging(&self) -> Hpa {
        Hpa::new(MEMORY.raw() + (GUEST_FRAMES + self.config.table_frames) * PAGE_SIZE)
    }

    pub fn map(
        &mut self,
        domain: DomainId,
        page: u64,
        pages: u64,
        gfn: u64,
        access: Access,
    ) -> Result<(), Violation> {
        let in_memory = [SMALL, LARGE]
            .iter()
            .any(|slot| slot.contains(&gfn) && gfn + pages <= slot.end);
        let frames = self.iommu.frames_available();
        let gpa = Gpa::new(gfn * PAGE_SIZE);
        let result = self.iommu.map(domain, range(page, pages), gpa, access);
        match result {
            Ok(()) => {
                check(in_memory, "memory the guest has not")?;
                check(
                    self.oracle.in_range(domain, page, pages).is_empty(),
                    "a mapping over another",
                )?;
                self.oracle.mappings.push(Mapped {
                    domain: domain.number(),
                    page,
                    pages,
                    gfn,
                    access,
                });
            }
            Err(error) => {
                let occupied = !self.oracle.in_range(domain, page, pages).is_empty();
                let expected = match error {
                    MapError::NotGuestMemory => !in_memory,
                    MapError::Overlap => occupied,
                    MapError::OutOfMemory => frames < 4,
                    _ => false,
                };
                check(expected, &format!("map refused: {error}"))?;
                let left = self.iommu.frames_available();
                check(left == frames, "a refused map took frames")?;
            }
        }
        self.check_landed()
    }

    pub fn unmap(
        &mut self,
        domain: DomainId,
        page: u64,
        pages: u64,
        with_bitmap: bool,
    ) -> Result<(), Violation> {
        let mut words = vec![0; pages.div_ceil(64) as usize];
        let mut bitmap = DirtyBitmap::new(&mut words);
        self.before_report();
        let before = self.hardware.invalidations();
        let result = self.iommu.unmap(
            domain,
            range(page, pages),
            with_bitmap.then_some(&mut bitmap),
        );
        self.after_report();
        self.check_landed()?;
        let waits = u64::from(result.is_ok_and(|unmapped| unmapped.pages > 0));
        self.check_waits(before, waits)?;
        if self.oracle.bisects(domain, page, pages) {
            return check(result == Err(UnmapError::Bisects), "a mapping was bisected");
        }
        let gone = self.oracle.in_range(domain, page, pages);
        let count = |mappings: &mut dyn Iterator<Item = &Mapped>| mappings.map(|m| m.pages).sum();
        let expected = Unmapped {
            pages: count(&mut gone.iter()),
            mappings: gone.len() as u64,
            dirty: count(&mut gone.iter().filter(|mapping| mapping.access.writes())),
        };
        check(
            result == Ok(expected),
            &format!("{result:?}, not {expected:?}"),
        )?;
        for index in 0..pages {
            let writable = self
                .oracle
                .lookup(domain, page + index)
                .is_some_and(|(_, access)| access.writes());
            let bit = words[index as usize / 64] >> (index % 64) & 1 == 1;
            check(
                bit == (with_bitmap && writable),
                "a wrong bit in the bitmap",
            )?;
        }
        self.oracle.remove(domain, page, pages);
        Ok(())
    }

    pub fn unmap_range(
        &mut self,
        domain: DomainId,
        page: u64,
        pages: u64,
    ) -> Result<(), Violation> {
        self.before_report();
        let before = self.hardware.invalidations();
        let result = self.iommu.unmap_range(domain, range(page, pages));
        self.after_report();
        self.check_landed()?;
        self.check_waits(before, u64::from(result.is_ok_and(|mappings| mappings > 0)))?;
        if self.oracle.bisects(domain, page, pages) {
            return check(
                result == Err(SpaceError::OutOfRange),
                "a mapping was bisected",
            );
        }
        let gone = self.oracle.in_range(domain, page, pages).len() as u64;
        check(result == Ok(gone), "a wrong count of mappings")?;
        self.oracle.remove(domain, page, pages);
        Ok(())
    }

    /// `wanted` by guest frame number.
    pub fn replace(
        &mut self,
        domain: DomainId,
        page: u64,
        wanted: &[Option<(u64, Access)>],
    ) -> Result<(), Violation> {
        let mappings: Vec<_> = wanted
            .iter()
            .map(|wanted| {
                wanted.map(|(gfn, access)| Mapping {
                    gfn: Gfn::new(gfn),
                    access,
                })
            })
            .collect();
        self.before_report();
        let invalidated = self.hardware.invalidations();
        let result = self.iommu.replace(domain, iova(page), &mappings);
        self.after_report();
        self.check_landed()?;
        let done = result.unwrap_or_default();
        let for_absent = self.config.caches_absent && done.mapped > 0;
        let waits = u64::from(done.unmapped > 0) + u64::from(for_absent);
        self.check_waits(invalidated, waits)?;
        let before = self.oracle.in_range(domain, page, wanted.len() as u64);
        if before.iter().any(|mapping| mapping.pages > 1) {
            return check(
                result == Err(SpaceError::OutOfRange),
                "a mapping was bisected",
            );
        }
        let replaced = result.map_err(|error| error.to_string())?;
        let (mut unmapped, mut mapped, mut refused) = (0, 0, 0);
        for (page, wanted) in (page..).zip(wanted) {
            let old = self.oracle.lookup(domain, page);
            if old == *wanted {
                continue;
            }
            unmapped += u64::from(old.is_some());
            self.oracle.remove(domain, page, 1);
            let Some((gfn, access)) = *wanted else {
                continue;
            };
            if self.guest.translate(Gfn::new(gfn).gpa()).is_err() {
                refused += 1;
                continue;
            }
            mapped += 1;
            self.oracle.mappings.push(Mapped {
                domain: domain.number(),
                page,
                pages: 1,
                gfn,
                access,
            });
        }
        check(
            (replaced.unmapped, replaced.mapped, replaced.refused) == (unmapped, mapped, refused),
            &format!("{replaced:?}, not {unmapped} {mapped} {refused}"),
        )
    }

    pub fn attach(&mut self, device: SourceId, to: Attachment) -> Result<(), Violation> {
        let result = self.iommu.attach(device, to);
        self.check_landed()?;
        result.map_err(|error| error.to_string())?;
        self.oracle.attached.insert(device.raw(), to);
        self.identity_was_used |= to == Attachment::Identity;
        Ok(())
    }

    /// A device writes; whether it may is compared with the oracle.
    pub fn device_write(&mut self, device: SourceId, page: u64) -> Result<(), Violation> {
        let allowed = self
            .reach(device, page)
            .is_some_and(|(_, access)| access.writes());
        let done = self.hardware.write(device, iova(page));
        check(
            done == allowed,
            "a device reaches what it should not, or the reverse",
        )
    }

    /// A device reads, which fills caches.
    pub fn device_read(&mut self, device: SourceId, page: u64) -> Result<(), Violation> {
        let allowed = self
            .reach(device, page)
            .is_some_and(|(_, access)| access.reads() || self.hardware.writes_imply_reads());
        let done = self.hardware.read(device, iova(page));
        check(
            done == allowed,
            "a device reads what it should not, or the reverse",
        )
    }

    fn reach(&self, device: SourceId, page: u64) -> Option<(u64, Access)> {
        match self.oracle.attachment(device) {
            Attachment::Blocked => None,
            Attachment::Domain(domain) => self.oracle.lookup(domain, page),
            Attachment::Identity => (SMALL.contains(&page) || LARGE.contains(&page))
                .then_some((page, Access::ReadWrite)),
        }
    }

    /// A round of migration. There are no dirty bits to be found, as the layer was
    /// told.
    pub fn harvest(&mut self) -> Result<(), Violation> {
        let before = self.iommu.epoch();
        let marked = self.iommu.harvest().map_err(|error| error.to_string())?;
        check(marked == 0, "evidence where there is none")?;
        check(before < self.iommu.epoch(), "a harvest begins an epoch")
    }

    /// One invalidation, which waits, however large the range was; none for nothing.
    fn check_waits(&self, before: u64, expected: u64) -> Result<(), Violation> {
        let is_broken = self.hardware.fault.get() == Fault::DoesNotAnswer;
        if is_broken || is_active(Sabotage::Iotlb) {
            return Ok(());
        }
        let waits = self.hardware.invalidations() - before;
        check(
            waits == expected,
            &format!("waited {waits} times, not {expected}"),
        )
    }

    /// When each page was last writable is known.
    pub fn check_last_writable(&mut self) -> Result<(), Violation> {
        self.oracle.note_writable(self.iommu.epoch());
        let some_large = LARGE.start..LARGE.start + 4;
        for gfn in SMALL.chain(some_large) {
            let (told, known) = (
                self.iommu.last_writable(Gfn::new(gfn)),
                self.oracle.last_writable(gfn),
            );
            check(
                told == known,
                &format!("page {gfn} was last writable {told:?}, not {known:?}"),
            )?;
        }
        Ok(())
    }

    fn before_report(&mut self) {
        if self.drops_unmap_reports {
            self.migration.send_dirty();
        }
    }

    fn after_report(&mut self) {
        if self.drops_unmap_reports {
            self.log.start();
        }
    }

    /// The end of migration: devices stop, the last harvest, and every page at
    /// the destination is as it is here.
    pub fn switch_over(&mut self) -> Result<(), Violation> {
        self.hardware.land();
        self.check_landed()?;
        self.check_pins()?;
        self.iommu.mark_writable();
        self.migration.send_dirty();
        let lost = self.migration.lost();
        check(lost.is_empty(), &format!("writes were lost: {lost:?}"))
    }

    /// Every frame for tables comes back.
    pub fn tear_down(&mut self) -> Result<(), Violation> {
        for device in [device(1), device(2)] {
            self.attach(device, Attachment::Blocked)?;
        }
        // Mapping by mapping, so that tables become empty step by step.
        for mapping in self.oracle.mappings.clone() {
            let domain = DomainId::new(mapping.domain);
            self.unmap(domain, mapping.page, mapping.pages, true)?;
        }
        check(self.iommu.writable_pages() == 0, "pages stay pinned")?;
        // The identity domain's tables stay: one of each level, and a leaf table
        // for the pages of the large slot beyond the large leaf.
        let identity = (u64::from(self.config.levels) + 1) * u64::from(self.identity_was_used);
        let total = self.config.table_frames - identity;
        let roots = self.domains.len() as u64;
        let left = self.iommu.frames_available();
        check(left == total - roots, "empty tables are kept")?;
        for domain in self.domains.clone() {
            let destroyed = self.iommu.destroy_domain(domain);
            destroyed.map_err(|error| error.to_string())?;
        }
        check(self.iommu.frames_available() == total, "frames are leaked")
    }

    /// No write lands where the oracle has no writable mapping (any more).
    pub fn check_landed(&mut self) -> Result<(), Violation> {
        for write in self.hardware.take_landed() {
            let identity = self.oracle.identity_is_used() && write.domain == DomainId::new(1);
            let reached = match identity {
                true => Some((write.page, Access::ReadWrite)),
                false => self.oracle.lookup(write.domain, write.page),
            };
            let gfn = self.guest.gfn_of(write.hpa).map(Gfn::number);
            let allowed =
                reached.is_some_and(|(expected, access)| access.writes() && Some(expected) == gfn);
            check(allowed, &format!("late or astray: {write:?}"))?;
        }
        Ok(())
    }

    pub fn check_pins(&self) -> Result<(), Violation> {
        let writable = self.oracle.writable();
        let expected = match self.oracle.identity_is_used() {
            true => GUEST_FRAMES,
            false => writable.len() as u64,
        };
        let counted = self.iommu.writable_pages();
        check(
            counted == expected,
            &format!("{counted} writable pages, not {expected}"),
        )
    }
}

fn check(holds: bool, otherwise: &str) -> Result<(), Violation> {
    match holds {
        true => Ok(()),
        false => Err(otherwise.into()),
    }
}
