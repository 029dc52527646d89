//! The host side: the real layer, over a unit that notes what it is asked.

use crate::virtio_support::guest::Memory;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::testing::Arena;
use hv_core::{Hpa, PAGE_SIZE};
use iommu::tables::VtdSecondStage;
use iommu::unit::{DomainId, Fault, HostUnit, Scope, SourceId, UnitError};
use iommu::{Iommu, Parts};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What the host's unit was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Attach(SourceId),
    Block(SourceId),
    Invalidate,
}

/// A unit that does what it is asked, unless it is told not to.
#[derive(Clone, Default)]
pub struct Willing {
    calls: Rc<RefCell<Vec<Call>>>,
    fails: Rc<Cell<Option<UnitError>>>,
}

impl Willing {
    pub fn take(&self) -> Vec<Call> {
        self.calls.take()
    }

    /// Attaches fail like that from now on, and invalidations if it does not answer.
    pub fn fail(&self, error: Option<UnitError>) {
        self.fails.set(error);
    }
}

impl HostUnit for Willing {
    fn levels(&self) -> u8 {
        3
    }
    fn has_large_leaves(&self) -> bool {
        true
    }
    fn caches_absent(&self) -> bool {
        false
    }
    fn attach(&mut self, device: SourceId, _: DomainId, _: Hpa) -> Result<(), UnitError> {
        self.calls.borrow_mut().push(Call::Attach(device));
        self.fails.get().map_or(Ok(()), Err)
    }
    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        self.calls.borrow_mut().push(Call::Block(device));
        Ok(())
    }
    fn invalidate(&mut self, _: DomainId, _: Scope) -> Result<(), UnitError> {
        self.calls.borrow_mut().push(Call::Invalidate);
        match self.fails.get() {
            Some(UnitError::NoAnswer) => Err(UnitError::NoAnswer),
            _ => Ok(()),
        }
    }
    fn take_fault(&mut self) -> Option<Fault> {
        None
    }
}

pub type Layer<U> = Iommu<'static, Arena, U>;

/// A layer without domains, with so many frames for tables, that tracks writes.
pub fn layer<U: HostUnit>(memory: Memory, unit: U, tables: u64) -> Layer<U> {
    for frame in 0..tables {
        let at = Hpa::new(memory.free.raw() + frame * PAGE_SIZE);
        memory.arena.frame(at).unwrap().clear();
    }
    let mut layer = Iommu::new(Parts {
        mem: memory.arena,
        format: VtdSecondStage,
        unit,
        guest: memory.guest,
        pool: FramePool::new(memory.free, tables),
        pins: vec![0; super::FRAMES as usize].leak(),
    })
    .unwrap();
    layer.start_tracking().unwrap();
    layer
}
