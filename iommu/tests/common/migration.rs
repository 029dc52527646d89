//! The migration that follows the dirty log.

use hv_core::Gfn;
use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// It sends the first word of a page, which is the one devices write.
pub struct Migration<'m> {
    guest: &'m GuestMemory<'m, Arena>,
    sent: RefCell<BTreeMap<u64, u64>>,
}

impl<'m> Migration<'m> {
    pub fn new(guest: &'m GuestMemory<'m, Arena>) -> Self {
        let sent = RefCell::default();
        Self { guest, sent }
    }

    /// One round: takes what the log has, then reads and sends it.
    pub fn send_dirty(&self) {
        let mut from = Gfn::new(0);
        while let Some(batch) = self.guest.log().drain(from) {
            from = batch.resume_at();
            for gfn in batch {
                let content = self.content(gfn);
                self.sent.borrow_mut().insert(gfn.number(), content);
            }
        }
    }

    /// The guest frames whose destination copy is stale.
    pub fn lost(&self) -> Vec<u64> {
        let sent = self.sent.borrow();
        let slots = self.guest.slots().iter();
        slots
            .flat_map(|slot| (0..slot.frames).map(|index| slot.gfn.number() + index))
            .filter(|gfn| {
                let sent = sent.get(gfn).copied().unwrap_or(0);
                sent != self.content(Gfn::new(*gfn))
            })
            .collect()
    }

    fn content(&self, gfn: Gfn) -> u64 {
        self.guest.frame(gfn).unwrap().words()[0].load(Ordering::SeqCst)
    }
}
