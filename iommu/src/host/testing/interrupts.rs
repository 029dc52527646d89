//! The rules of interrupt remapping, which hold for the units of both vendors.

use crate::unit::{HostUnit, InterruptTarget, SourceId, UnitError};
use hv_core::platform::apic::Msi;
use proptest::strategy::Strategy;
use std::vec::Vec;

pub(in crate::host) const DEVICE: SourceId = SourceId::new(0x0018);
pub(in crate::host) const OTHER: SourceId = SourceId::new(0x0020);
pub(in crate::host) const TARGET: InterruptTarget = InterruptTarget {
    apic_id: 1,
    vector: 0x41,
};
const ELSEWHERE: InterruptTarget = InterruptTarget {
    apic_id: 2,
    vector: 0x52,
};

/// Nobody is granted this one.
const FORGED: InterruptTarget = InterruptTarget {
    apic_id: 0,
    vector: 0x77,
};
/// How many messages that name an entry are tried: more than there are entries.
const MESSAGES: u16 = 1024;

/// A driver of a unit, and the devices behind the unit.
pub(in crate::host) struct Rig<'a> {
    pub(in crate::host) unit: &'a mut dyn HostUnit,
    /// Has a device send a message. Returns what reaches the CPUs, `None` if nothing.
    pub(in crate::host) send: &'a dyn Fn(SourceId, Msi) -> Option<Msi>,
    /// The message that names an entry.
    pub(in crate::host) message: fn(u16) -> Msi,
    /// How many interrupts one device can be granted.
    pub(in crate::host) entries: u16,
}

impl Rig<'_> {
    /// All that `device` can raise: by naming any entry, or by a message that would pass
    /// if nobody remapped it.
    fn raised_by(&self, device: SourceId) -> Vec<Msi> {
        let named = (0..MESSAGES).map(self.message);
        let forged = FORGED.unremapped().unwrap();
        named
            .chain([forged])
            .filter_map(|message| (self.send)(device, message))
            .collect()
    }

    /// Grants it, and has it raised.
    fn grant(&mut self, device: SourceId, target: InterruptTarget) -> Msi {
        let message = self.unit.grant_interrupt(device, target).unwrap();
        assert_eq!((self.send)(device, message), Some(delivered(target)));
        message
    }
}

fn delivered(target: InterruptTarget) -> Msi {
    target.unremapped().unwrap()
}

/// Each device raises what it was granted, and neither what others were nor anything
/// that nobody was.
pub(in crate::host) fn each_device_raises_what_it_was_granted(mut rig: Rig<'_>) {
    assert!(rig.unit.remaps_interrupts());
    assert_eq!(rig.raised_by(DEVICE), []);
    rig.grant(DEVICE, TARGET);
    assert_eq!(rig.raised_by(DEVICE), [delivered(TARGET)]);
    assert_eq!(rig.raised_by(OTHER), []);
    rig.grant(OTHER, ELSEWHERE);
    assert_eq!(rig.raised_by(DEVICE), [delivered(TARGET)]);
    assert_eq!(rig.raised_by(OTHER), [delivered(ELSEWHERE)]);
    rig.grant(DEVICE, ELSEWHERE);
    assert_eq!(rig.raised_by(DEVICE), [TARGET, ELSEWHERE].map(delivered));
}

/// What was taken back is refused though the unit had cached it, the entries are given
/// out again though it has cached their absence, and others' stay.
pub(in crate::host) fn what_was_taken_back_is_refused(mut rig: Rig<'_>) {
    let first = rig.grant(DEVICE, TARGET);
    rig.grant(DEVICE, ELSEWHERE);
    let others = rig.grant(OTHER, TARGET);
    rig.unit.revoke_interrupts(DEVICE).unwrap();
    assert_eq!(rig.raised_by(DEVICE), []);
    assert_eq!((rig.send)(OTHER, others), Some(delivered(TARGET)));
    assert_eq!(rig.grant(DEVICE, ELSEWHERE), first, "the entry is free");
    assert_eq!(rig.raised_by(DEVICE), [delivered(ELSEWHERE)]);
    rig.unit.revoke_interrupts(DEVICE).unwrap();
    rig.unit.revoke_interrupts(DEVICE).unwrap();
    assert_eq!(rig.raised_by(DEVICE), []);
}

/// A full table and a CPU out of reach are errors that change nothing.
pub(in crate::host) fn what_cannot_be_granted_changes_nothing(mut rig: Rig<'_>) {
    let far = InterruptTarget {
        apic_id: 256,
        ..TARGET
    };
    let refused = rig.unit.grant_interrupt(DEVICE, far);
    assert_eq!(refused, Err(UnitError::OutOfRange));
    let granted = (0..rig.entries).map(|index| InterruptTarget {
        vector: index as u8,
        ..TARGET
    });
    for target in granted.clone() {
        rig.grant(DEVICE, target);
    }
    let full = rig.unit.grant_interrupt(DEVICE, TARGET);
    assert_eq!(full, Err(UnitError::OutOfMemory));
    // The forged message may name an entry too.
    let raised = rig.raised_by(DEVICE).into_iter().take(rig.entries.into());
    assert!(granted.map(delivered).eq(raised));
    rig.unit.revoke_interrupts(DEVICE).unwrap();
    rig.grant(DEVICE, TARGET);
}

/// Whatever is granted and taken back in which order: each device raises what it was
/// granted last, and nothing else. A step is a device's number, below 3, and the vector
/// that it is granted; without one, all of its interrupts are taken back.
pub(in crate::host) fn a_model_agrees(mut rig: Rig<'_>, steps: &[(u16, Option<u8>)]) {
    let device = |number: u16| SourceId::new(number << 8);
    let mut granted = [const { Vec::new() }; 3];
    for (number, vector) in steps {
        let model = &mut granted[usize::from(*number)];
        match *vector {
            Some(vector) => {
                let target = InterruptTarget { vector, ..TARGET };
                rig.grant(device(*number), target);
                model.push(delivered(target).data);
            }
            None => {
                rig.unit.revoke_interrupts(device(*number)).unwrap();
                model.clear();
            }
        }
        for (model, number) in granted.iter_mut().zip(0..) {
            let raised = rig.raised_by(device(number));
            let mut vectors: Vec<u32> = raised.iter().map(|message| message.data).collect();
            vectors.sort_unstable();
            model.sort_unstable();
            assert_eq!(&vectors, model, "device {number}");
        }
    }
}

/// What [`a_model_agrees`] is given: more grants than revocations.
pub(in crate::host) fn steps() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
    let step = (0u16..3, proptest::option::weighted(0.7, 0x20..=0xffu8));
    proptest::collection::vec(step, 1..20)
}

/// A unit that does not remap says so, and messages pass as they are.
pub(in crate::host) fn without_remapping_messages_pass(rig: Rig<'_>) {
    assert!(!rig.unit.remaps_interrupts());
    let message = rig.unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert_eq!((rig.send)(OTHER, message), Some(delivered(TARGET)));
    rig.unit.revoke_interrupts(DEVICE).unwrap();
}
