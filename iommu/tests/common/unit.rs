//! A remapping unit and its devices, as mean as real ones may be.
//!
//! It reads the tables by the bits of the specification, not through the layer's
//! own code. It caches translations and the way to leaf tables until they are
//! invalidated. A device's write is translated at once and lands any time later,
//! at the latest when an invalidation or an attachment drains it. And devices
//! race: whenever the layer invalidates, they first write through everything that
//! is still cached, and try again right after. So does migration: it sends what the log has just before the
//! drained writes land.

use super::migration::Migration;
use hv_core::memory::PhysMemory;
use hv_core::testing::Arena;
use hv_core::{Hpa, PAGE_SIZE};
use iommu::tables::AnyFormat;
use iommu::unit::{DomainId, HostUnit, Scope, SourceId, UnitError};
use iommu::{Iova, IovaRange};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// What is wrong with the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// Invalidations drop nothing.
    KeepsTranslations,
    /// Invalidations drop leaves, but not the way to their tables.
    KeepsTablePointers,
    /// Invalidations do not wait for writes in flight.
    DoesNotDrain,
    /// Invalidations fail.
    DoesNotAnswer,
    /// They fail for a device that keeps silent.
    DeviceKeepsSilent,
}

/// A write that was translated, and when it landed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    pub device: SourceId,
    pub domain: DomainId,
    pub page: u64,
    pub hpa: Hpa,
    value: u64,
}

#[derive(Clone, Copy)]
struct Translation {
    hpa: Hpa,
    read: bool,
    write: bool,
}

/// The way to a leaf table, with the rights that it grants.
#[derive(Clone, Copy)]
struct LeafTable {
    table: Hpa,
    read: bool,
    write: bool,
}

#[derive(Default)]
struct State {
    contexts: BTreeMap<u16, (DomainId, Hpa)>,
    translations: BTreeMap<(u16, u64), Translation>,
    leaf_tables: BTreeMap<(u16, u64), LeafTable>,
    in_flight: Vec<Write>,
    landed: Vec<Write>,
    last_value: u64,
    invalidations: u64,
}

/// The hardware: the layer holds it as its unit, the test as its devices.
pub struct Hardware<'m> {
    mem: &'m Arena,
    migration: &'m Migration<'m>,
    levels: u8,
    format: AnyFormat,
    state: RefCell<State>,
    pub fault: Cell<Fault>,
    /// Whether a page found missing stays so until it is invalidated.
    pub caches_absent: bool,
}

impl<'m> Hardware<'m> {
    pub fn new(
        mem: &'m Arena,
        migration: &'m Migration<'m>,
        levels: u8,
        format: AnyFormat,
    ) -> Self {
        Self {
            mem,
            migration,
            levels,
            format,
            state: RefCell::default(),
            fault: Cell::new(Fault::None),
            caches_absent: false,
        }
    }

    /// Whether a page that can be written can be read in any case.
    pub fn writes_imply_reads(&self) -> bool {
        self.format == AnyFormat::VtdFirstStage
    }

    /// A device reads: the translation is cached. Says whether it was allowed.
    pub fn read(&self, device: SourceId, iova: Iova) -> bool {
        let mut state = self.state.borrow_mut();
        self.translate(&mut state, device, iova)
            .is_some_and(|(_, translation)| translation.read)
    }

    /// A device writes: it is translated now, and lands later. Says whether it was
    /// allowed.
    pub fn write(&self, device: SourceId, iova: Iova) -> bool {
        self.post(&mut self.state.borrow_mut(), device, iova)
    }

    fn post(&self, state: &mut State, device: SourceId, iova: Iova) -> bool {
        match self.translate(state, device, iova) {
            Some((domain, translation)) if translation.write => {
                state.last_value += 1;
                state.in_flight.push(Write {
                    device,
                    domain,
                    page: iova.raw() / PAGE_SIZE,
                    hpa: translation.hpa,
                    value: state.last_value,
                });
                true
            }
            _ => false,
        }
    }

    /// All writes in flight land, as when devices are stopped.
    pub fn land(&self) {
        self.land_if(&mut self.state.borrow_mut(), |_| true);
    }

    fn land_if(&self, state: &mut State, lands: impl Fn(&Write) -> bool) {
        let (landing, staying) = state.in_flight.drain(..).partition(lands);
        state.in_flight = staying;
        for write in &landing {
            let frame = self.mem.frame(write.hpa).expect("DMA beyond memory");
            frame.words()[0].store(write.value, Ordering::SeqCst);
        }
        state.landed.extend::<Vec<_>>(landing);
    }

    /// What landed since this was last asked.
    pub fn take_landed(&self) -> Vec<Write> {
        std::mem::take(&mut self.state.borrow_mut().landed)
    }

    /// How many invalidations there were.
    pub fn invalidations(&self) -> u64 {
        self.state.borrow().invalidations
    }

    fn translate(
        &self,
        state: &mut State,
        device: SourceId,
        iova: Iova,
    ) -> Option<(DomainId, Translation)> {
        let (domain, root) = *state.contexts.get(&device.raw())?;
        let page = iova.raw() / PAGE_SIZE;
        let key = (domain.number(), page);
        if let Some(hit) = state.translations.get(&key) {
            return Some((domain, *hit));
        }
        let mut walked = self.walk(state, domain, root, page);
        if self.caches_absent {
            walked = walked.or(Some(Translation {
                hpa: Hpa::new(0),
                read: false,
                write: false,
            }));
        }
        if let Some(found) = walked {
            state.translations.insert(key, found);
        }
        walked.map(|found| (domain, found))
    }

    /// A walk. What it finds present is cached, with rights or without.
    fn walk(
        &self,
        state: &mut State,
        domain: DomainId,
        root: Hpa,
        page: u64,
    ) -> Option<Translation> {
        let region = (domain.number(), page >> 9);
        let top = LeafTable {
            table: root,
            read: true,
            write: true,
        };
        let (start, mut level) = match state.leaf_tables.get(&region) {
            Some(cached) => (*cached, 1),
            None => (top, self.levels),
        };
        let LeafTable {
            mut table,
            mut read,
            mut write,
        } = start;
        if page >> (9 * u32::from(self.levels)) != 0 {
            return None;
        }
        loop {
            let index = (page >> (9 * u32::from(level - 1))) & 511;
            let words = self.mem.frame(table).expect("walk beyond memory").words();
            let entry = words[index as usize].load(Ordering::SeqCst);
            let step = match self.format {
                AnyFormat::VtdSecondStage => vtd_step(entry, level, 0xf00),
                // A and D, in leaves and above, are not reserved.
                AnyFormat::VtdSecondStageDirty => vtd_step(entry, level, 0xc00),
                AnyFormat::VtdFirstStage => first_stage_step(entry, level),
                AnyFormat::AmdV1 => amd_step(entry, level),
            }?;
            read &= step.read;
            write &= step.write;
            let address = entry & 0x000f_ffff_ffff_f000;
            if step.is_leaf {
                let below = page & ((1 << (9 * u32::from(level - 1))) - 1);
                assert!(level <= 2 && address & (below * PAGE_SIZE) == 0);
                let hpa = Hpa::new(address + below * PAGE_SIZE);
                return Some(Translation { hpa, read, write });
            }
            table = Hpa::new(address);
            level -= 1;
            if level == 1 {
                let way = LeafTable { table, read, write };
                state.leaf_tables.insert(region, way);
            }
        }
    }

    /// The pages of a domain with a translation cached.
    fn cached_pages(state: &State, domain: DomainId) -> Vec<u64> {
        let keys = state.translations.keys();
        keys.filter(|(of, _)| *of == domain.number())
            .map(|(_, page)| *page)
            .collect()
    }

    /// Every device of the domain writes to these pages.
    fn race(&self, state: &mut State, domain: DomainId, pages: &[u64]) {
        let devices: Vec<u16> = state
            .contexts
            .iter()
            .filter(|(_, (of, _))| *of == domain)
            .map(|(device, _)| *device)
            .collect();
        for device in devices {
            for page in pages {
                let iova = Iova::new(page * PAGE_SIZE);
                self.post(state, SourceId::new(device), iova);
            }
        }
    }
}

/// What a walk learns from a present entry, beside the address.
struct Step {
    read: bool,
    write: bool,
    is_leaf: bool,
}

/// VT-d second stage: bit 0 reads, bit 1 writes, bit 7 a leaf above level 1;
/// without rights it is not present.
fn vtd_step(entry: u64, level: u8, reserved: u64) -> Option<Step> {
    if entry & 3 == 0 {
        return None;
    }
    assert_eq!(entry & (1 << 62 | reserved), 0, "reserved bits are set");
    Some(Step {
        read: entry & 1 != 0,
        write: entry & 2 != 0,
        is_leaf: level == 1 || entry & 0x80 != 0,
    })
}

/// VT-d first stage: bit 0 present and readable, bit 1 writes, bit 2 for all
/// requests, bit 7 a leaf above level 1, bit 63 never.
fn first_stage_step(entry: u64, level: u8) -> Option<Step> {
    if entry & 1 == 0 {
        return None;
    }
    assert_eq!(entry & (1 << 63 | 1 << 2), 1 << 2, "not for user requests");
    Some(Step {
        read: true,
        write: entry & 2 != 0,
        is_leaf: level == 1 || entry & 0x80 != 0,
    })
}

/// AMD version 1: bit 0 present, bit 61 reads, bit 62 writes, bits 11:9 the level
/// below or 0 for a leaf.
fn amd_step(entry: u64, level: u8) -> Option<Step> {
    if entry & 1 == 0 {
        return None;
    }
    let next = (entry >> 9 & 7) as u8;
    let reserved = if next == 0 { 0 } else { 1 << 60 } | 0xff << 52;
    assert_eq!(entry & reserved, 0, "reserved bits are set");
    assert!(next == 0 || next == level - 1, "levels are skipped");
    Some(Step {
        read: entry >> 61 & 1 != 0,
        write: entry >> 62 & 1 != 0,
        is_leaf: next == 0,
    })
}

impl HostUnit for &Hardware<'_> {
    fn levels(&self) -> u8 {
        self.levels
    }

    fn has_large_leaves(&self) -> bool {
        true
    }

    fn caches_absent(&self) -> bool {
        self.caches_absent
    }

    fn attach(&mut self, device: SourceId, domain: DomainId, root: Hpa) -> Result<(), UnitError> {
        let mut state = self.state.borrow_mut();
        state.contexts.insert(device.raw(), (domain, root));
        self.land_if(&mut state, |write| write.device == device);
        match self.fault.get() {
            Fault::DoesNotAnswer => Err(UnitError::NoAnswer),
            Fault::DeviceKeepsSilent => Err(UnitError::DeviceTlb),
            _ => Ok(()),
        }
    }

    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        let mut state = self.state.borrow_mut();
        state.contexts.remove(&device.raw());
        self.land_if(&mut state, |write| write.device == device);
        Ok(())
    }

    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        let mut state = self.state.borrow_mut();
        state.invalidations += 1;
        let pages = Hardware::cached_pages(&state, domain);
        self.race(&mut state, domain, &pages);
        self.migration.send_dirty();
        let fault = self.fault.get();
        match fault {
            Fault::DoesNotAnswer => return Err(UnitError::NoAnswer),
            Fault::DeviceKeepsSilent => return Err(UnitError::DeviceTlb),
            _ => {}
        }
        let range = match scope {
            Scope::Domain => IovaRange::ALL,
            Scope::Pages(range) => range,
        };
        let first = range.start().raw() / PAGE_SIZE;
        let last = range.last_page().raw() / PAGE_SIZE;
        let in_scope = |of: u16, page| of == domain.number() && first <= page && page <= last;
        if fault != Fault::KeepsTranslations {
            state
                .translations
                .retain(|&(of, page), _| !in_scope(of, page));
            if fault != Fault::KeepsTablePointers {
                state.leaf_tables.retain(|&(of, region), _| {
                    of != domain.number() || region < first >> 9 || last >> 9 < region
                });
            }
        }
        if fault != Fault::DoesNotDrain {
            self.land_if(&mut state, |write| write.domain == domain);
        }
        self.race(&mut state, domain, &pages);
        Ok(())
    }

    fn take_fault(&mut self) -> Option<iommu::unit::Fault> {
        None
    }
}
