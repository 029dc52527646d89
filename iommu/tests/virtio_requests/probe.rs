//! PROBE (5.13.6.7).

use crate::virtio_support::*;
use iommu::viommu::Viommu;
use iommu::viommu::virtio::Features;

#[test]
fn probe_tells_of_the_doorbell() {
    let mut machine = Machine::new();
    let answer = machine.ask(&probe(0x18), 28);
    let mut expected = vec![1, 0, 20, 0, 1, 0, 0, 0];
    expected.extend(0xfee0_0000u64.to_le_bytes());
    expected.extend(0xfeef_ffffu64.to_le_bytes());
    expected.extend([OK, 0, 0, 0]);
    assert_eq!(answer, expected);
    assert_eq!(machine.unit.read(0x100 + 32, 4), 24, "probe_size");
}

#[test]
fn probe_of_an_unknown_endpoint_is_no_entry() {
    let answer = Machine::new().ask(&probe(0x19), 28);
    assert_eq!(answer[..24], [0; 24]);
    assert_eq!(answer[24..], [NOENT, 0, 0, 0]);
}

#[test]
fn probe_with_too_little_room_is_invalid_and_writes_no_property() {
    let mut machine = Machine::new();
    for room in 4..28 {
        let answer = machine.ask(&probe(0x18), room);
        let tail = room as usize - 4;
        assert_eq!(answer[..tail], vec![0; tail]);
        assert_eq!(answer[tail..], [INVAL, 0, 0, 0]);
    }
}

#[test]
fn probe_is_given_back_unwritten_unless_negotiated() {
    let mut machine = Machine::new();
    machine.start(Features::all().difference(Features::PROBE).bits());
    assert_eq!(machine.ask(&probe(0x18), 28), []);
}
