//! The machine's other CPU, which enters the guest on order.
//!
//! ```text
//!   boot CPU                            worker
//!   send: order in the slot,            halted until an interrupt
//!         interrupt          -------->  run the guest until it exits
//!   take: slot free again    <--------  return in the slot, interrupt
//! ```
//!
//! Whose the slot is, and how the worker is called back, is in [`turn`]. An interrupt
//! without news wakes either for nothing.

mod turn;

use crate::vectors;
use core::sync::atomic::{AtomicU32, Ordering};
use hv_core::svm::IdleVcpu;
use hv_core::vcpu::Vcpu;
use hv_core::vm::{Order, Return};
use log::error;
use spin::{Mutex, Once};
use strandline_rt::apic::{LocalApic, Mode};
use strandline_rt::cpu;
use turn::{Errand, Turn};

/// What is in the slot.
enum Letter {
    Order(Order),
    Return(Return),
}

static TURN: Turn = Turn::new();
static SLOT: Mutex<Option<Letter>> = Mutex::new(None);
/// The virtual CPU, until the worker takes it.
static VCPU: Mutex<Option<IdleVcpu<'static>>> = Mutex::new(None);
/// The boot CPU's APIC id.
static BOSS: AtomicU32 = AtomicU32::new(0);
/// Whether there is a worker: its APIC id.
static HIRED: Once<u32> = Once::new();

/// What the other CPU runs, once it is started.
pub fn main() -> ! {
    let apic = match LocalApic::enable(Mode::XApic) {
        Ok(apic) => apic,
        Err(error) => {
            error!("the other CPU: {error}");
            cpu::halt_forever()
        }
    };
    // Interrupts are disabled but while it halts, so no order is slept through.
    let mut vcpu = loop {
        if let Some(vcpu) = VCPU.lock().take() {
            break vcpu.occupy_this_cpu();
        }
        cpu::halt_until_interrupt();
    };
    loop {
        match TURN.look() {
            None => {
                cpu::halt_until_interrupt();
                continue;
            }
            Some(Errand::Run) => {}
            // It ends the entry that is still made: what the entry was asked for is done.
            Some(Errand::ComeBack) => apic.send_interrupt(apic.id(), vectors::PROCESSOR),
        }
        let letter = SLOT.lock().take();
        if let Some(Letter::Order(order)) = letter {
            let Order { mut state, entry } = order;
            let exit = vcpu.run(&mut state, entry);
            let back = Return { state, entry, exit };
            *SLOT.lock() = Some(Letter::Return(back));
        }
        TURN.done();
        apic.send_interrupt(BOSS.load(Ordering::Relaxed), vectors::PROCESSOR);
    }
}

/// The boot CPU's end.
pub struct Worker<'a> {
    apic: &'a LocalApic,
    id: u32,
}

impl<'a> Worker<'a> {
    /// Gives the CPU with the APIC id `id`, which runs [`main`], the virtual CPU that
    /// it runs from now on. `None` if it has one already.
    pub fn hire(apic: &'a LocalApic, id: u32, vcpu: IdleVcpu<'static>) -> Option<Self> {
        if HIRED.get().is_some() {
            return None;
        }
        HIRED.call_once(|| id);
        BOSS.store(apic.id(), Ordering::Relaxed);
        *VCPU.lock() = Some(vcpu);
        let worker = Self { apic, id };
        worker.interrupt();
        Some(worker)
    }

    /// Has it run the guest. It has no order yet.
    pub fn send(&self, order: Order) {
        *SLOT.lock() = Some(Letter::Order(order));
        TURN.give();
        self.interrupt();
    }

    /// What came of the order, when it is done.
    pub fn take(&self) -> Option<Return> {
        if !TURN.collect() {
            return None;
        }
        match SLOT.lock().take() {
            Some(Letter::Return(back)) => Some(back),
            _ => None,
        }
    }

    /// Has it leave the guest if it is there.
    pub fn call(&self) {
        TURN.call();
        self.interrupt();
    }

    fn interrupt(&self) {
        self.apic.send_interrupt(self.id, vectors::PROCESSOR);
    }

    /// Has it leave the guest, and waits until it has.
    pub fn recall(&self) -> Return {
        self.call();
        loop {
            if let Some(back) = self.take() {
                return back;
            }
            cpu::pause();
        }
    }
}
