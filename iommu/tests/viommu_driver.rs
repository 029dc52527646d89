//! The emulated VT-d unit under the project's own driver for real ones, as the
//! test guest runs it: neither was written against the other.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails its test")]

mod viommu_support;

use hv_core::memory::{Frame, FramePool, GuestMemory, PhysMemory};
use hv_core::mmio::Mmio;
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, Hpa};
use iommu::host::vtd::{Implementation, VtdUnit};
use iommu::space::{Access, Attachment};
use iommu::unit::{DomainId, Fault, HostUnit, Scope};
use iommu::viommu::Viommu;
use iommu::{Iova, IovaRange};
use std::cell::RefCell;
use viommu_support::*;

/// The register window; between two accesses the unit has time to work.
struct Window<'a>(&'a RefCell<Machine>);

impl Mmio for Window<'_> {
    fn read32(&self, offset: usize) -> u32 {
        let mut machine = self.0.borrow_mut();
        machine.settle();
        machine.read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        self.0.borrow_mut().write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        let mut machine = self.0.borrow_mut();
        machine.settle();
        machine.read(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        self.0.borrow_mut().write(offset, value);
    }
}

/// What the guest takes for physical memory.
struct View(&'static GuestMemory<'static, Arena>);

impl PhysMemory for View {
    fn frame(&self, hpa: Hpa) -> Option<&Frame> {
        self.0.frame(Gfn::containing(Gpa::new(hpa.raw()))).ok()
    }
}

fn with_driver(test: impl FnOnce(&RefCell<Machine>, &mut VtdUnit<'_, Window<'_>, View>)) {
    let machine = RefCell::new(Machine::new());
    let view = View(machine.borrow().memory);
    let pool = FramePool::new(Hpa::new(48 << 12), 8);
    let mut driver =
        VtdUnit::start(Window(&machine), &view, pool, Implementation::Hardware).unwrap();
    {
        let machine = machine.borrow();
        for table in [TABLE_A, TABLE_B] {
            machine.poke(table, table + 0x1003);
            machine.poke(table + 0x1000, table + 0x2003);
        }
    }
    test(&machine, &mut driver);
}

fn page(number: u64) -> Scope {
    Scope::Pages(IovaRange::new(Iova::new(number << 12), 1).unwrap())
}

#[test]
fn the_driver_starts_maps_unmaps_and_moves_devices() {
    with_driver(|machine, driver| {
        assert!(driver.caches_absent());
        assert_eq!(machine.borrow().place(NIC), Attachment::Blocked);
        let (a, b) = (DomainId::new(5), DomainId::new(6));
        driver.attach(NIC.guest, a, Hpa::new(TABLE_A)).unwrap();
        machine.borrow().set_leaf(TABLE_A, 7, leaf(DATA));
        driver.invalidate(a, page(7)).unwrap();
        let mapped = mapping(DATA, Access::ReadWrite);
        assert_eq!(machine.borrow().pages(NIC)[&7], mapped);

        machine.borrow().set_leaf(TABLE_A, 7, 0);
        driver.invalidate(a, page(7)).unwrap();
        assert!(machine.borrow().pages(NIC).is_empty());

        machine.borrow().set_leaf(TABLE_B, 9, leaf(DATA));
        driver.attach(NIC.guest, b, Hpa::new(TABLE_B)).unwrap();
        assert_eq!(machine.borrow().pages(NIC)[&9], mapped);
        driver.block(NIC.guest).unwrap();
        assert_eq!(machine.borrow().place(NIC), Attachment::Blocked);
        assert!(machine.borrow().space.domains.is_empty());
    });
}

#[test]
fn the_driver_reads_the_faults_of_its_devices() {
    with_driver(|machine, driver| {
        driver
            .attach(NIC.guest, DomainId::new(5), Hpa::new(TABLE_A))
            .unwrap();
        for number in 1..=3 {
            let machine = &mut *machine.borrow_mut();
            let iova = Iova::new(number << 12);
            machine
                .unit
                .inject_fault(machine.memory, NIC.host, iova, true);
        }
        for number in 1..=3 {
            let fault = driver.take_fault().and_then(Fault::dma).unwrap();
            assert_eq!(fault.source, NIC.guest);
            assert_eq!(fault.iova, Iova::new(number << 12));
            assert!(fault.write);
        }
        assert_eq!(driver.take_fault(), None);
    });
}
