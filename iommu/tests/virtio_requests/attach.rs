//! ATTACH (5.13.6.3), and DETACH (5.13.6.4) its opposite.

use crate::virtio_support::*;
use crate::{attached, virtio_support};
use iommu::space::Attachment;
use iommu::viommu::virtio::Features;

#[test]
fn attach_makes_a_domain_and_the_endpoint_goes_through_it() {
    let machine = attached();
    assert_eq!(machine.pages(NIC), []);
    assert_eq!(machine.place(DISK), Attachment::Blocked);
}

#[test]
fn attach_of_an_unknown_endpoint_is_no_entry() {
    let mut machine = Machine::new();
    assert_eq!(
        machine.status_of(&virtio_support::attach(1, 0x19, 0)),
        NOENT
    );
    assert_eq!(
        machine.status_of(&virtio_support::attach(1, 0x1_0018, 0)),
        NOENT
    );
}

#[test]
fn attach_with_a_reserved_byte_set_is_invalid() {
    let mut machine = Machine::new();
    for at in 16..20 {
        let mut request = virtio_support::attach(1, 0x18, 0);
        request[at] = 1;
        assert_eq!(machine.status_of(&request), INVAL);
    }
}

#[test]
fn attach_with_an_unknown_flag_is_invalid() {
    let mut machine = Machine::new();
    for bit in 1..32 {
        assert_eq!(machine.attach(1, NIC, 1 << bit), INVAL);
    }
}

#[test]
fn attach_to_a_domain_beyond_the_range_is_out_of_range() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(0x1_0000, NIC, 0), RANGE);
    assert_eq!(machine.attach(0xffff, NIC, 0), OK);
    assert_eq!(machine.attach(0, DISK, 0), OK);
}

#[test]
fn attach_for_bypassing_reaches_all_memory() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, BYPASS), OK);
    assert_eq!(machine.place(NIC), Attachment::Identity);
}

#[test]
fn attach_that_contradicts_the_domains_kind_is_invalid() {
    let mut machine = attached();
    assert_eq!(machine.attach(1, DISK, BYPASS), INVAL);
    assert_eq!(machine.attach(2, DISK, BYPASS), OK);
    assert_eq!(machine.attach(2, NIC, 0), INVAL);
    assert_eq!(machine.attach(1, NIC, 0), OK, "it is where it was");
}

#[test]
fn attach_for_bypassing_is_unknown_without_its_feature() {
    let mut machine = Machine::new();
    machine.start(Features::all().difference(Features::BYPASS_CONFIG).bits());
    assert_eq!(machine.attach(1, NIC, BYPASS), INVAL);
    assert_eq!(machine.attach(1, NIC, 0), OK);
}

#[test]
fn attach_again_to_the_same_domain_changes_nothing() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert_eq!(machine.pages(NIC), [(7, DATA, 3)]);
}

#[test]
fn attach_elsewhere_detaches_and_reports_all_that_could_be_written() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 2, DATA), OK);
    assert_eq!(machine.map(1, 0, 0xfff, (DATA + 5) << 12, READ), OK);
    assert_eq!(machine.attach(2, NIC, 0), OK);
    assert_eq!(machine.pages(NIC), []);
    assert!(machine.is_dirty(DATA) && machine.is_dirty(DATA + 1));
    assert!(!machine.is_dirty(DATA + 5), "it was read-only");
    assert_eq!(
        machine.map_pages(1, 7, 1, DATA),
        NOENT,
        "it was the last one"
    );
}

#[test]
fn attach_without_means_leaves_the_endpoint_where_it_was() {
    let mut machine = attached();
    // The first takes two tables, the others one each.
    for page in (0..).step_by(512) {
        if machine.space.frames_available() == 0 {
            break;
        }
        assert_eq!(machine.map_pages(1, page, 1, DATA), OK);
    }
    let before = machine.pages(NIC);
    assert_eq!(machine.attach(2, NIC, 0), NOMEM);
    assert_eq!(machine.pages(NIC), before);
    assert_eq!(machine.attach(1, NIC, 0), OK);
}

#[test]
fn endpoints_of_one_domain_share_its_mappings() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    assert_eq!(machine.attach(1, DISK, 0), OK);
    assert_eq!(machine.pages(DISK), [(7, DATA, 3)]);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(
        machine.pages(DISK),
        [(7, DATA, 3)],
        "it still has an endpoint"
    );
    assert_eq!(machine.place(NIC), Attachment::Blocked);
}

#[test]
fn detach_ends_the_domain_of_the_last_endpoint() {
    let mut machine = attached();
    let frames = machine.space.frames_available();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(machine.place(NIC), Attachment::Blocked);
    assert!(machine.is_dirty(DATA));
    assert_eq!(machine.unmap_pages(1, 7, 1), NOENT);
    assert_eq!(machine.space.frames_available(), frames + 1, "its root too");
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert_eq!(machine.pages(NIC), [], "a new domain under the old number");
}

#[test]
fn detach_while_bypass_is_on_reaches_all_memory() {
    let mut machine = attached();
    machine.set_bypass(true);
    assert_eq!(machine.place(DISK), Attachment::Identity);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(machine.place(NIC), Attachment::Identity);
}

#[test]
fn detach_of_an_unknown_endpoint_is_no_entry() {
    let mut machine = attached();
    assert_eq!(machine.status_of(&virtio_support::detach(1, 0x19)), NOENT);
}

#[test]
fn detach_from_a_domain_the_endpoint_is_not_in_is_invalid() {
    let mut machine = attached();
    assert_eq!(machine.detach(2, NIC), INVAL, "there is no such domain");
    assert_eq!(machine.attach(2, DISK, 0), OK);
    assert_eq!(machine.detach(2, NIC), INVAL);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(machine.detach(1, NIC), INVAL, "twice");
}
