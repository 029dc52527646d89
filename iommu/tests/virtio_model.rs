//! The virtio-iommu against a naive model of the specification: a map from page to
//! mapping for each domain. Any request may be cut short by a move to another
//! machine, at any step.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails its test")]

mod virtio_support;

use iommu::space::Attachment;
use iommu::viommu::Passthrough;
use iommu::viommu::virtio::Features;
use proptest::prelude::*;
use std::collections::BTreeMap;
use virtio_support::*;

/// IOVAs that are used: the pages of four leaf tables.
const PAGES: u64 = 2048;
const DEVICES: [Passthrough; 2] = [NIC, DISK];

#[derive(Clone, Debug)]
enum Request {
    Attach {
        domain: u32,
        endpoint: u32,
        flags: u32,
    },
    Detach {
        domain: u32,
        endpoint: u32,
    },
    Map {
        domain: u32,
        first: u64,
        last: u64,
        physical: u64,
        flags: u32,
    },
    Unmap {
        domain: u32,
        first: u64,
        last: u64,
    },
}

#[derive(Clone, Debug)]
enum Action {
    /// A request, and after how many steps the guest moves, with its mappings in
    /// portions of so many records.
    Ask {
        request: Request,
        cut: Option<(u8, usize)>,
    },
    Bypass(bool),
    Reset,
}

/// One page of a mapping: guest frame, rights, and which mapping it is.
type Page = (u64, u32, u64);

#[derive(Clone, Default)]
struct Domain {
    bypass: bool,
    pages: BTreeMap<u64, Page>,
}

#[derive(Default)]
struct Model {
    domains: BTreeMap<u32, Domain>,
    members: BTreeMap<u32, u32>,
    bypass: bool,
    mappings: u64,
}

impl Model {
    fn ask(&mut self, request: &Request) -> u8 {
        match *request {
            Request::Attach {
                domain,
                endpoint,
                flags,
            } => {
                if flags & !BYPASS != 0 {
                    return INVAL;
                }
                if !is_endpoint(endpoint) {
                    return NOENT;
                }
                if domain > 0xffff {
                    return RANGE;
                }
                let bypass = flags == BYPASS;
                if self
                    .domains
                    .get(&domain)
                    .is_some_and(|it| it.bypass != bypass)
                {
                    return INVAL;
                }
                self.domains.entry(domain).or_default().bypass = bypass;
                self.members.insert(endpoint, domain);
                self.forget_empty();
                OK
            }
            Request::Detach { domain, endpoint } => {
                if !is_endpoint(endpoint) {
                    return NOENT;
                }
                if self.members.get(&endpoint) != Some(&domain) {
                    return INVAL;
                }
                self.members.remove(&endpoint);
                self.forget_empty();
                OK
            }
            Request::Map {
                domain,
                first,
                last,
                physical,
                flags,
            } => self.map(domain, first, last, physical, flags),
            Request::Unmap {
                domain,
                first,
                last,
            } => self.unmap(domain, first, last),
        }
    }

    fn map(&mut self, domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> u8 {
        if flags == 0 || flags & !(READ | WRITE) != 0 {
            return INVAL;
        }
        let Some(domain) = self.domains.get_mut(&domain) else {
            return NOENT;
        };
        if domain.bypass {
            return INVAL;
        }
        if [first, last + 1, physical].iter().any(|at| at % 4096 != 0) {
            return RANGE;
        }
        if last < first {
            return INVAL;
        }
        let pages = (last + 1 - first) / 4096;
        if physical / 4096 + pages > FRAMES {
            return FAULT;
        }
        let window = first / 4096..first / 4096 + pages;
        if window.clone().any(|page| domain.pages.contains_key(&page)) {
            return INVAL;
        }
        self.mappings += 1;
        for (page, gfn) in window.zip(physical / 4096..) {
            domain.pages.insert(page, (gfn, flags, self.mappings));
        }
        OK
    }

    fn unmap(&mut self, domain: u32, first: u64, last: u64) -> u8 {
        let Some(domain) = self.domains.get_mut(&domain) else {
            return NOENT;
        };
        if domain.bypass || last < first {
            return INVAL;
        }
        let touched = |page: u64| page * 4096 <= last && page * 4096 + 4095 >= first;
        let covered = |page: u64| page * 4096 >= first && page * 4096 + 4095 <= last;
        let split = domain.pages.iter().any(|(&page, &(_, _, mapping))| {
            let others = domain.pages.iter().filter(|(_, other)| other.2 == mapping);
            let all_covered = others.clone().all(|(&page, _)| covered(page));
            touched(page) && !all_covered
        });
        if split {
            return RANGE;
        }
        domain.pages.retain(|&page, _| !touched(page));
        OK
    }

    fn forget_empty(&mut self) {
        let members = &self.members;
        self.domains
            .retain(|domain, _| members.values().any(|other| other == domain));
    }

    fn check(&self, machine: &Machine) -> Result<(), TestCaseError> {
        for device in DEVICES {
            let endpoint = device.guest.raw().into();
            let domain = self.members.get(&endpoint).map(|it| &self.domains[it]);
            match domain {
                Some(Domain {
                    bypass: false,
                    pages,
                }) => {
                    let expected = pages
                        .iter()
                        .map(|(&page, &(gfn, flags, _))| (page, gfn, flags));
                    prop_assert_eq!(machine.pages(device), Vec::from_iter(expected));
                }
                Some(_) => prop_assert_eq!(machine.place(device), Attachment::Identity),
                None if self.bypass => {
                    prop_assert_eq!(machine.place(device), Attachment::Identity);
                }
                None => prop_assert_eq!(machine.place(device), Attachment::Blocked),
            }
        }
        Ok(())
    }

    /// Frames that a device can write.
    fn writable(&self) -> Vec<u64> {
        let pages = self
            .domains
            .values()
            .flat_map(|domain| domain.pages.values());
        pages
            .filter(|(_, flags, _)| flags & WRITE != 0)
            .map(|(gfn, _, _)| *gfn)
            .collect()
    }
}

fn is_endpoint(endpoint: u32) -> bool {
    DEVICES
        .iter()
        .any(|device| u32::from(device.guest.raw()) == endpoint)
}

fn encode(request: &Request) -> Vec<u8> {
    match *request {
        Request::Attach {
            domain,
            endpoint,
            flags,
        } => attach(domain, endpoint, flags).to_vec(),
        Request::Detach { domain, endpoint } => detach(domain, endpoint).to_vec(),
        Request::Map {
            domain,
            first,
            last,
            physical,
            flags,
        } => map(domain, first, last, physical, flags).to_vec(),
        Request::Unmap {
            domain,
            first,
            last,
        } => unmap(domain, first, last).to_vec(),
    }
}

fn domain() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1u32..3, 1 => Just(3), 1 => Just(0x1_0000)]
}

fn endpoint() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(0x18u32), 4 => Just(0x20), 1 => Just(0x19)]
}

/// First and last address, most often of whole pages.
fn window() -> impl Strategy<Value = (u64, u64)> {
    let pages = prop_oneof![
        8 => (0..64u64, 1..6u64),
        2 => (0..PAGES - 1100, 1..1100u64),
        1 => (500..520u64, 1..20u64),
        1 => Just((0, PAGES)),
    ];
    let off = prop_oneof![12 => Just(0i64), 1 => -2..3i64];
    (pages, off.clone(), off).prop_map(|((page, pages), begin, end)| {
        let first = (page << 12).saturating_add_signed(begin);
        (first, ((page + pages) << 12).saturating_add_signed(end - 1))
    })
}

fn request() -> impl Strategy<Value = Request> {
    let rights = prop_oneof![1 => Just(0u32), 4 => Just(READ), 12 => 2..4u32, 1 => Just(4)];
    let gfn = prop_oneof![12 => DATA..DATA + 300, 1 => FRAMES - 3..FRAMES + 1];
    let skew = prop_oneof![20 => Just(0u64), 1 => Just(8)];
    let attach_flags = prop_oneof![10 => Just(0u32), 1 => Just(BYPASS), 1 => Just(2)];
    prop_oneof![
        4 => (domain(), endpoint(), attach_flags).prop_map(|(domain, endpoint, flags)|
            Request::Attach { domain, endpoint, flags }),
        1 => (domain(), endpoint()).prop_map(|(domain, endpoint)|
            Request::Detach { domain, endpoint }),
        10 => (domain(), window(), gfn, skew, rights).prop_map(
            |(domain, (first, last), gfn, skew, flags)|
            Request::Map { domain, first, last, physical: (gfn << 12) + skew, flags }),
        8 => (domain(), window()).prop_map(|(domain, (first, last))|
            Request::Unmap { domain, first, last }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let cut = prop_oneof![3 => Just(None), 1 => (0u8..12, 1usize..4).prop_map(Some)];
    prop_oneof![
        40 => (request(), cut).prop_map(|(request, cut)| Action::Ask { request, cut }),
        1 => any::<bool>().prop_map(Action::Bypass),
        1 => Just(Action::Reset),
    ]
}

/// Asks, moves on the way if that is wanted, and returns the status.
fn ask(machine: &mut Machine, request: &[u8], cut: Option<(u8, usize)>) -> u8 {
    let Some((steps, records)) = cut else {
        return machine.status_of(request);
    };
    machine.submit_request(request, 4);
    (0..steps).for_each(|_| {
        machine.step();
    });
    // What the last harvest does on the source.
    machine.space.mark_writable();
    machine.migrate(records * 32).unwrap();
    machine.settle();
    machine.last_status()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_request_does_what_the_specification_says_wherever_the_guest_is(
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let mut machine = Machine::new();
        let mut model = Model::default();
        for action in actions {
            machine.clean();
            let writable = model.writable();
            match action {
                Action::Ask { request, cut } => {
                    let status = ask(&mut machine, &encode(&request), cut);
                    prop_assert_eq!(status, model.ask(&request), "{:?}", request);
                }
                Action::Bypass(bypass) => {
                    machine.set_bypass(bypass);
                    model.bypass = bypass;
                }
                Action::Reset => {
                    machine.start(Features::all().bits());
                    model.members.clear();
                    model.forget_empty();
                }
            }
            model.check(&machine)?;
            let left = model.writable();
            for gfn in writable {
                prop_assert!(machine.is_dirty(gfn) || left.contains(&gfn), "{} is lost", gfn);
            }
        }
    }
}
