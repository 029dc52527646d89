//! Requests in bounded steps, with few waits, and answered last.

use crate::attached;
use crate::virtio_support::*;
use iommu::viommu::{Service, Viommu};

#[test]
fn an_unmap_is_reported_before_it_is_answered() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 500, 600, DATA), OK);
    machine.clean();
    machine.host.take();
    machine.submit_request(&unmap(1, 500 << 12, (1100 << 12) - 1), 4);
    let mut steps = 0;
    while machine.used(false).is_none() {
        machine.step();
        steps += 1;
    }
    assert!((DATA..DATA + 600).all(|gfn| machine.is_dirty(gfn)));
    assert_eq!(machine.pages(NIC), []);
    // Three tables have a part in it: as many drains, and a step each beside the
    // first look and the last.
    assert_eq!(machine.host.take(), vec![Call::Invalidate; 3]);
    assert!(steps <= 6, "{steps}");
}

#[test]
fn a_map_of_all_memory_and_its_unmap_take_steps_of_a_table_each() {
    let mut machine = attached();
    // Not by large leaves: that would be too easy.
    let last = (FRAMES << 12) + 0xfff;
    let everything = map(1, 0x1000, last, 0, READ | WRITE);
    for (request, pages) in [
        (everything.to_vec(), FRAMES),
        (unmap(1, 0, u64::MAX).to_vec(), 0),
    ] {
        machine.submit_request(&request, 4);
        let (mut steps, mut before) = (0, machine.pages(NIC).len() as u64);
        while machine.used(false).is_none() {
            assert_eq!(machine.step(), Service::More);
            let now = machine.pages(NIC).len() as u64;
            assert!(now.abs_diff(before) <= 512);
            (before, steps) = (now, steps + 1);
        }
        assert_eq!(before, pages);
        assert!(steps <= FRAMES.div_ceil(512) + 4, "{steps}");
    }
}

#[test]
fn an_unmap_of_many_tables_waits_once_in_a_turn() {
    let mut machine = attached();
    for page in [1, 2048, 4096, 1 << 20] {
        assert_eq!(machine.map_pages(1, page, 1200, DATA), OK);
    }
    machine.clean();
    machine.host.take();
    machine.submit_request(&unmap(1, 0, u64::MAX), 4);
    // The first step looks, the last one answers.
    let turn = |machine: &mut Machine, steps| {
        let served = machine
            .unit
            .service(machine.memory, &mut machine.space, steps);
        assert!(served.is_ok());
        machine.host.take()
    };
    assert_eq!(turn(&mut machine, 2 + 12), [Call::Invalidate]);
    assert_eq!(machine.used(false), Some(4));
    assert_eq!(machine.pages(NIC), []);
    assert!((DATA..DATA + 1200).all(|gfn| machine.is_dirty(gfn)));

    // What does not fit a turn goes on in the next, with a wait of its own.
    for page in [1, 2048, 4096, 1 << 20] {
        assert_eq!(machine.map_pages(1, page, 1200, DATA), OK);
    }
    machine.submit_request(&unmap(1, 0, u64::MAX), 4);
    assert_eq!(turn(&mut machine, 1 + 8), [Call::Invalidate]);
    assert_eq!(machine.pages(NIC).len(), 1200 + (1200 - 1024));
    assert_eq!(turn(&mut machine, 8), [Call::Invalidate]);
    assert_eq!(machine.last_status(), OK);
}
