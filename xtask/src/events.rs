//! What the hypervisor says on its second serial port: one JSON object a line.
//!
//! This is the one place where the schema is written down. Unknown events and
//! unknown members are ignored, so that an older tool can watch a newer image; a
//! known event that lacks a member is an error, so that the two cannot drift apart
//! unnoticed.

use crate::exits::Period;
use serde::{Deserialize, Serialize};

/// An event and when it was.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Stamped {
    /// In microseconds of the machine's own clock; 0 if it does not say.
    #[serde(default)]
    pub at_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// One event. All sizes are in bytes, all times in microseconds of the machine's
/// own clock.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The hypervisor is up and has accepted the machine.
    Boot {
        /// `source` or `destination`.
        role: String,
        /// The image's version.
        version: String,
    },
    /// The machine or the request lacks something; nothing was started.
    Refused {
        /// For people.
        reason: String,
    },
    /// The destination has accepted the guest (source).
    Connected,
    /// The remapping unit of the guest's device is up.
    Iommu {
        /// Its kind, for people.
        unit: String,
        /// Whether it tells of the DMA it refuses.
        reports_faults: bool,
        /// Whether the device can raise those interrupts only that it was granted.
        remaps_interrupts: bool,
        /// What counts as evidence that a device wrote a page.
        dirty_mode: String,
        /// Why it is that and no more.
        dirty_reason: String,
    },
    /// The guest said the word that its migration waits for (source).
    Cue,
    /// A pre-copy round is complete (source).
    Round(Round),
    /// The guest is stopped, the last pages are about to go (source).
    Switchover,
    /// The destination has acknowledged and the source has let go (source).
    Migrated(Migrated),
    /// The migration is off and the guest runs on here (source).
    MigrationFailed {
        /// For people.
        reason: String,
    },
    /// The guest runs here now (destination).
    Resumed,
    /// A page differs between the two machines at switchover (audit).
    Mismatch {
        /// The guest frame number.
        gfn: u64,
    },
    /// The remapping hardware recorded faults of the guest's device.
    DmaFault {
        /// How many since the event before.
        count: u64,
    },
    /// The guest mapped pages for its device that the hypervisor refused.
    RefusedMapping {
        /// How many since the event before.
        count: u64,
    },
    /// The remapping hardware refused interrupt requests.
    InterruptFault {
        /// How many since the event before.
        count: u64,
    },
    /// An interrupt reached the hypervisor that nobody was granted.
    StrayInterrupt {
        /// Its vector.
        vector: u64,
    },
    /// How often the guest exited since the event before, by reason.
    Exits(Period),
    /// The passthrough device was taken from whoever had it.
    DeviceReset {
        /// Whether the function could be reset, and was.
        done: bool,
    },
    /// The passthrough device was made like the source's (destination).
    DeviceRebuilt(Rebuilt),
    /// The guest has ended.
    GuestExit {
        /// 0 if the guest is content.
        status: u64,
        /// `exit`, `power-off`, `reset` or `error`.
        way: String,
    },
    /// An event this tool does not know.
    #[serde(other)]
    Unknown,
}

/// The figures of one pre-copy round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Round {
    /// From 1 on.
    pub round: u64,
    /// Pages sent in this round, zero pages included.
    pub pages: u64,
    /// Those of them that were all zero.
    pub zero: u64,
    /// Bytes sent in this round.
    pub bytes: u64,
    /// Marks in the dirty log during this round: CPU writes.
    pub dirty_cpu: u64,
    /// Marks of pages that a device could still write.
    pub dirty_mapped: u64,
    /// Marks made by unmap reports.
    pub dirty_unmap: u64,
    /// Marks made by the hypervisor's own device emulation.
    pub dirty_emulation: u64,
    /// Pages known to be dirty when the round ended.
    pub remaining: u64,
    /// Bytes a second.
    pub rate: u64,
}

/// The figures of a completed migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Migrated {
    /// Pre-copy rounds and the final one.
    pub rounds: u64,
    /// Pages sent, repeats and zero pages included.
    pub pages_sent: u64,
    /// Bytes of the whole stream.
    pub bytes_sent: u64,
    /// From the guest's stop to the destination's acknowledgement: the sum of the
    /// six parts below.
    pub downtime_us: u64,
    /// Stopping the guest and its device.
    pub quiesce_us: u64,
    /// The last harvest of dirty pages.
    pub harvest_us: u64,
    /// Sending the last pages.
    pub pages_us: u64,
    /// Comparing all pages; 0 unless asked for.
    pub audit_us: u64,
    /// Sending the processor's and the devices' state.
    pub state_us: u64,
    /// Waiting for the destination.
    pub ack_us: u64,
    /// Marks in the dirty log during the migration: CPU writes.
    pub dirty_cpu: u64,
    /// Marks of pages that a device could still write.
    pub dirty_mapped: u64,
    /// Marks made by unmap reports.
    pub dirty_unmap: u64,
    /// Marks made by the hypervisor's own device emulation.
    pub dirty_emulation: u64,
}

/// How a passthrough device was made like the source's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rebuilt {
    /// The commands it took.
    pub commands: u64,
    /// How long it took, in microseconds of the destination's clock.
    pub us: u64,
}

impl Stamped {
    /// Reads one line.
    ///
    /// # Errors
    /// The line is no JSON object, has no `event`, or a known event lacks a member.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Event, serde_json::Error> {
        Stamped::parse(line).map(|stamped| stamped.event)
    }

    #[test]
    fn every_event_of_the_schema_is_read() {
        let round = r#"{"event":"round","round":1,"pages":2,"zero":3,"bytes":4,"dirty_cpu":5,
            "dirty_mapped":6,"dirty_unmap":7,"dirty_emulation":8,"remaining":9,"rate":10}"#;
        let Ok(Event::Round(round)) = parse(round) else {
            panic!("no round");
        };
        assert_eq!((round.round, round.dirty_unmap, round.rate), (1, 7, 10));

        let migrated = r#"{"event":"migrated","rounds":3,"pages_sent":17000,"bytes_sent":1,
            "downtime_us":15,"quiesce_us":1,"harvest_us":2,"pages_us":3,"audit_us":0,"state_us":4,"ack_us":5,
            "dirty_cpu":6,"dirty_mapped":7,"dirty_unmap":8,"dirty_emulation":9}"#;
        let Ok(Event::Migrated(migrated)) = parse(migrated) else {
            panic!("no migrated");
        };
        assert_eq!((migrated.pages_sent, migrated.dirty_emulation), (17_000, 9));

        let exits = r#"{"event":"exits","us":1000000,"host-interrupt":1,"mmio":2}"#;
        let Ok(Event::Exits(period)) = parse(exits) else {
            panic!("no exits");
        };
        assert_eq!((period.us, period.counts["mmio"]), (1_000_000, 2));

        for (line, expected) in [
            (
                r#"{"event":"iommu","unit":"AMD-Vi","reports_faults":false,"remaps_interrupts":true,
                    "dirty_mode":"mapped-writable","dirty_reason":"it sets none"}"#,
                Event::Iommu {
                    unit: "AMD-Vi".into(),
                    reports_faults: false,
                    remaps_interrupts: true,
                    dirty_mode: "mapped-writable".into(),
                    dirty_reason: "it sets none".into(),
                },
            ),
            (r#"{"event":"switchover"}"#, Event::Switchover),
            (r#"{"event":"resumed"}"#, Event::Resumed),
            (r#"{"event":"cue"}"#, Event::Cue),
            (
                r#"{"event":"device-reset","done":true}"#,
                Event::DeviceReset { done: true },
            ),
            (
                r#"{"event":"device-rebuilt","commands":70,"us":9}"#,
                Event::DeviceRebuilt(Rebuilt {
                    commands: 70,
                    us: 9,
                }),
            ),
            (
                r#"{"event":"mismatch","gfn":291}"#,
                Event::Mismatch { gfn: 291 },
            ),
            (
                r#"{"event":"dma-fault","count":2}"#,
                Event::DmaFault { count: 2 },
            ),
            (
                r#"{"event":"guest-exit","status":0,"way":"power-off"}"#,
                Event::GuestExit {
                    status: 0,
                    way: "power-off".into(),
                },
            ),
            (
                r#"{"event":"refused-mapping","count":3}"#,
                Event::RefusedMapping { count: 3 },
            ),
            (
                r#"{"event":"interrupt-fault","count":1}"#,
                Event::InterruptFault { count: 1 },
            ),
            (
                r#"{"event":"stray-interrupt","vector":119}"#,
                Event::StrayInterrupt { vector: 119 },
            ),
        ] {
            assert_eq!(parse(line).unwrap(), expected);
        }
    }

    #[test]
    fn an_event_is_told_with_its_time_which_is_no_member_of_it() {
        let line = r#"{"event":"exits","at_us":7,"us":1000000,"mmio":2}"#;
        let Ok(Stamped {
            at_us: 7,
            event: Event::Exits(period),
        }) = Stamped::parse(line)
        else {
            panic!("no exits at 7");
        };
        assert_eq!(period.counts.len(), 1);
    }

    #[test]
    fn unknown_events_and_members_are_ignored() {
        assert_eq!(
            parse(r#"{"event":"tea-time","sugar":2}"#).unwrap(),
            Event::Unknown
        );
        assert_eq!(
            parse(r#"{"event":"dma-fault","count":1,"why":"x"}"#).unwrap(),
            Event::DmaFault { count: 1 }
        );
    }

    #[test]
    fn a_known_event_that_lacks_a_member_is_an_error() {
        let error = parse(r#"{"event":"guest-exit"}"#).unwrap_err();
        assert!(error.to_string().contains("status"), "{error}");
        parse("panicked at").unwrap_err();
    }
}
