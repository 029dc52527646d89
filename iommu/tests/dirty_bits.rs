//! What is reported where the hardware sets dirty bits.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::dirty::{FRAMES, Machine, TRUSTED, with_dirty_unit};
use common::world::range;
use iommu::DirtyBitmap;
use iommu::dirty_mode::{DirtyHardware, DirtyMode, DirtyReason, DirtyUpdate};
use iommu::space::Access;
use iommu::tables::{AmdV1, EntryFormat, VtdFirstStage, VtdSecondStageDirty};

fn in_every_format(test: impl Fn(&mut dyn Scenario)) {
    with_dirty_unit(VtdSecondStageDirty, TRUSTED, 32, |mut m| test(&mut m));
    with_dirty_unit(VtdFirstStage, TRUSTED, 32, |mut m| test(&mut m));
    with_dirty_unit(AmdV1, TRUSTED, 32, |mut m| test(&mut m));
}

/// A machine of any format.
trait Scenario {
    fn start(&mut self);
    fn stop(&mut self);
    fn map(&mut self, page: u64, pages: u64, access: Access);
    /// A device writes; says at which level the leaf is.
    fn write(&self, page: u64) -> u8;
    fn read(&self, page: u64);
    /// Unmaps with a bitmap, which must say the same as the log.
    fn unmap(&mut self, page: u64, pages: u64) -> Vec<u64>;
    fn harvest(&mut self) -> Vec<u64>;
    fn harvest_stopped(&mut self) -> Vec<u64>;
    fn invalidations(&self) -> u64;
    fn frames(&self) -> u64;
}

impl<F: EntryFormat> Scenario for Machine<'_, F> {
    fn start(&mut self) {
        self.layer.start_tracking().unwrap();
    }
    fn stop(&mut self) {
        self.layer.stop_tracking();
    }
    fn map(&mut self, page: u64, pages: u64, access: Access) {
        Machine::map(self, page, pages, access);
    }
    fn write(&self, page: u64) -> u8 {
        self.set(page, self.format.accessed() | self.format.dirty())
    }
    fn read(&self, page: u64) {
        self.set(page, self.format.accessed());
    }
    fn unmap(&mut self, page: u64, pages: u64) -> Vec<u64> {
        let mut words = [0; FRAMES as usize / 64];
        let mut bitmap = DirtyBitmap::new(&mut words);
        let unmapped = self
            .layer
            .unmap(self.domain, range(page, pages), Some(&mut bitmap))
            .unwrap();
        let bits = (0..pages).filter(|index| words[*index as usize / 64] >> (index % 64) & 1 == 1);
        let by_iova: Vec<u64> = bits.map(|index| page + index).collect();
        let drained = self.drain();
        assert_eq!(by_iova, drained);
        assert_eq!(unmapped.dirty, drained.len() as u64);
        drained
    }
    fn harvest(&mut self) -> Vec<u64> {
        let marked = self.layer.harvest().unwrap();
        let drained = self.drain();
        assert_eq!(marked, drained.len() as u64);
        drained
    }
    fn harvest_stopped(&mut self) -> Vec<u64> {
        self.layer.harvest_stopped().unwrap();
        self.drain()
    }
    fn invalidations(&self) -> u64 {
        self.invalidations.get()
    }
    fn frames(&self) -> u64 {
        self.layer.frames_available()
    }
}

#[test]
fn an_unmap_reports_exactly_the_pages_written() {
    in_every_format(|machine| {
        machine.start();
        machine.map(0, 8, Access::ReadWrite);
        machine.map(600, 8, Access::ReadWrite);
        for page in [1, 6, 603] {
            assert_eq!(machine.write(page), 1);
        }
        machine.read(2);
        let before = machine.invalidations();
        assert_eq!(machine.unmap(0, 1024), [1, 6, 603]);
        assert_eq!(machine.invalidations(), before + 1);
    });
}

#[test]
fn a_harvest_reports_each_write_once_and_costs_nothing_without_one() {
    in_every_format(|machine| {
        machine.start();
        machine.map(510, 4, Access::ReadWrite);
        let before = machine.invalidations();
        assert_eq!(machine.harvest(), []);
        assert_eq!(machine.invalidations(), before);
        machine.write(510);
        machine.write(512);
        assert_eq!(machine.harvest(), [510, 512]);
        assert_eq!(machine.invalidations(), before + 1);
        assert_eq!(machine.harvest(), []);
        machine.write(512);
        machine.write(513);
        assert_eq!(machine.unmap(510, 4), [512, 513]);
    });
}

#[test]
fn writes_before_tracking_do_not_count() {
    in_every_format(|machine| {
        machine.map(0, 4, Access::ReadWrite);
        machine.write(1);
        let before = machine.invalidations();
        machine.start();
        assert_eq!(machine.invalidations(), before + 1, "old bits are flushed");
        assert_eq!(machine.harvest(), []);
        machine.write(2);
        assert_eq!(machine.harvest_stopped(), [2]);
    });
}

#[test]
fn large_leaves_are_split_while_tracking_and_merged_after() {
    in_every_format(|machine| {
        machine.map(512, 512, Access::ReadWrite);
        let frames = machine.frames();
        assert_eq!(machine.write(700), 2);
        machine.start();
        assert_eq!(machine.frames(), frames - 1);
        assert_eq!(machine.write(800), 1);
        assert_eq!(machine.harvest(), [800]);
        machine.stop();
        assert_eq!(machine.frames(), frames);
        assert_eq!(machine.write(900), 2, "one leaf again");
        machine.start();
        machine.write(513);
        assert_eq!(machine.unmap(512, 512), [513]);
    });
}

#[test]
fn mappings_that_meet_are_not_merged_into_one() {
    in_every_format(|machine| {
        machine.start();
        machine.map(512, 256, Access::ReadWrite);
        machine.map(768, 256, Access::ReadWrite);
        machine.map(0, 512, Access::ReadWrite);
        machine.stop();
        assert_eq!(machine.write(0), 2, "made while tracking, and one piece");
        assert_eq!(machine.write(512), 1);
        machine.start();
        assert_eq!(machine.unmap(512, 256), []);
    });
}

#[test]
fn a_leaf_that_cannot_be_split_is_reported_as_a_whole() {
    // Root and the table above the leaf, and none to split it with.
    with_dirty_unit(VtdSecondStageDirty, TRUSTED, 2, |mut machine| {
        Machine::map(&mut machine, 512, 512, Access::ReadWrite);
        machine.start();
        assert_eq!(machine.write(700), 2);
        assert_eq!(machine.harvest(), Vec::from_iter(512..1024));
        assert_eq!(machine.harvest(), []);
    });
}

#[test]
fn no_page_is_reported_that_was_read_only_or_not_written() {
    in_every_format(|machine| {
        machine.start();
        machine.map(0, 4, Access::Read);
        machine.map(4, 4, Access::ReadWrite);
        // The second is an erratum of some hardware's: bits in a read-only page.
        machine.read(0);
        machine.write(1);
        machine.read(4);
        assert_eq!(machine.harvest(), []);
        machine.read(5);
        machine.write(6);
        assert_eq!(machine.harvest_stopped(), [6]);
        assert_eq!(machine.unmap(0, 8), [6]);
    });
}

/// What a driver says of an AMD unit: a bit may be skipped in a leaf that is altered.
const SKIPS: DirtyHardware = DirtyHardware {
    update: DirtyUpdate::Skipped,
    ..TRUSTED
};

#[test]
fn where_bits_are_skipped_they_count_as_long_as_nobody_alters_the_leaf() {
    with_dirty_unit(AmdV1, SKIPS, 32, |mut machine| {
        machine.start();
        Machine::map(&mut machine, 0, 8, Access::ReadWrite);
        Machine::map(&mut machine, 8, 8, Access::Read);
        machine.write(1);
        machine.read(2);
        assert_eq!(machine.harvest(), [1]);
        assert_eq!(machine.harvest(), []);
        machine.write(3);
        assert_eq!(machine.harvest_stopped(), [3]);
        // All of the table goes, and with it nothing that was not written.
        assert_eq!(machine.unmap(0, 512), [3]);
        Machine::map(&mut machine, 0, 8, Access::ReadWrite);
        Machine::map(&mut machine, 8, 8, Access::Read);
        Machine::map(&mut machine, 100, 1, Access::ReadWrite);
        assert_eq!(machine.unmap(0, 16), Vec::from_iter(0..8));
    });
}

#[test]
fn the_operator_can_see_what_counts_and_why() {
    with_dirty_unit(VtdFirstStage, TRUSTED, 8, |machine| {
        let decision = machine.layer.dirty_decision();
        assert_eq!(decision.mode, DirtyMode::DirtyBit);
        assert_eq!(decision.reason, DirtyReason::Exact);
    });
}

#[test]
fn without_trust_every_page_mapped_writable_counts_until_its_unmap() {
    with_dirty_unit(VtdFirstStage, DirtyHardware::NONE, 8, |mut machine| {
        machine.start();
        Machine::map(&mut machine, 0, 2, Access::ReadWrite);
        Machine::map(&mut machine, 2, 2, Access::Read);
        assert_eq!(machine.harvest(), []);
        assert_eq!(machine.harvest_stopped(), [0, 1]);
        assert_eq!(machine.unmap(0, 4), [0, 1]);
    });
}

#[test]
fn where_reads_hide_writes_the_accessed_bit_counts() {
    let facts = DirtyHardware {
        read_hides_write: true,
        ..TRUSTED
    };
    with_dirty_unit(VtdSecondStageDirty, facts, 8, |mut machine| {
        machine.start();
        Machine::map(&mut machine, 0, 3, Access::ReadWrite);
        Machine::map(&mut machine, 3, 1, Access::Read);
        machine.read(1);
        machine.read(3);
        assert_eq!(machine.harvest(), [1]);
        machine.read(2);
        assert_eq!(machine.unmap(0, 4), [2]);
    });
}
