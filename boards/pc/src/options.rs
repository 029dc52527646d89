//! The boot command line.
//!
//! Words of the form `name=value`, separated by spaces, in any order; what follows
//! a word `--` is the guest's own command line and is passed on as it is.

use hv_core::sabotage::Sabotage;
use iommu::viommu::any::Kind;

/// What this machine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Discovers the machine, shows what it found, and ends.
    #[default]
    None,
    /// Boots the guest from the boot module and migrates it away.
    Source,
    /// Waits for a guest and runs it.
    Destination,
}

impl Role {
    const ALL: [Self; 3] = [Self::None, Self::Source, Self::Destination];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options<'a> {
    /// `role=`
    pub role: Role,
    /// `memory=`: the guest's memory in bytes, whole 2 MiB.
    pub memory: u64,
    /// `viommu=`: the kind of IOMMU that the guest is given.
    pub viommu: Kind,
    /// `interrupt-remapping=`: whether it offers to remap interrupts, if its kind can.
    pub interrupt_remapping: bool,
    /// `vcpus=`: the guest's CPUs, 1 or 2.
    pub vcpus: usize,
    /// `max-bandwidth=`: what migration may send, bytes a second; `None`: no limit.
    pub max_bandwidth: Option<u64>,
    /// `downtime-limit=`: how long the guest may stand still, microseconds.
    pub downtime_limit_us: u64,
    /// `migrate-after=`: when migration starts, microseconds after the guest did;
    /// `None`: see [`Options::migrate_after_us`].
    migrate_after_us: Option<u64>,
    /// `migrate-on=`: migration starts when the guest ends a line on its console with
    /// this word.
    pub migrate_on: Option<&'a str>,
    /// `verify=`: whether the two machines compare all pages at switchover.
    pub verify: bool,
    /// `sabotage=`: the mechanism to break; only in a build that can.
    pub sabotage: Option<Sabotage>,
    /// What follows `--`: the guest's command line.
    pub guest: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            role: Role::None,
            memory: 64 << 20,
            viommu: Kind::Vtd,
            interrupt_remapping: true,
            vcpus: 1,
            max_bandwidth: None,
            downtime_limit_us: 500_000,
            migrate_after_us: None,
            migrate_on: None,
            verify: false,
            sabotage: None,
            guest: "",
        }
    }
}

/// The guest's memory is a multiple of this, so that large pages can map it.
pub const MEMORY_GRANULE: u64 = 2 << 20;
/// The most memory a guest can have: its devices begin above.
pub const MAX_MEMORY: u64 = 3 << 30;

/// The longest word that a guest can start its migration with.
pub const MAX_CUE: usize = 64;

/// Slower than a record of the stream a second, and the destination would take the
/// pauses for a broken link.
pub const MIN_BANDWIDTH: u64 = 64 << 10;

/// When migration starts if nothing is said of that, microseconds after the guest.
const MIGRATE_AFTER_US: u64 = 500_000;

const NAMES: &str = "role, memory, vcpus, viommu, interrupt-remapping, max-bandwidth, downtime-limit, \
                     migrate-after, migrate-on, verify, sabotage";

/// What is wrong with the command line; the message names the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError<'a> {
    /// No option of that name.
    #[error(
        "unknown option \"{0}\"; allowed are {NAMES}, each as name=value, and -- before the guest's own"
    )]
    Unknown(&'a str),
    /// An option was given twice.
    #[error("option \"{0}\" is given twice")]
    Twice(&'a str),
    /// A value that the option does not have.
    #[error("{option}={value}: allowed is {allowed}")]
    Value {
        /// The option.
        option: &'a str,
        /// What was given.
        value: &'a str,
        /// What may be given.
        allowed: &'static str,
    },
    /// `sabotage=` in a build without breaking points.
    #[error(
        "sabotage={0}: this image has no breaking points; build it with the feature \"sabotage\""
    )]
    NotBreakable(&'a str),
}

impl<'a> Options<'a> {
    /// Reads a command line.
    pub fn parse(line: &'a str) -> Result<Self, OptionsError<'a>> {
        let (own, guest) = split_at_dashes(line);
        let mut options = Self {
            guest,
            ..Self::default()
        };
        for (index, word) in own.split_ascii_whitespace().enumerate() {
            let (name, value) = word.split_once('=').ok_or(OptionsError::Unknown(word))?;
            let is_name_of = |word: &str| word.split_once('=').is_some_and(|(n, _)| n == name);
            if own.split_ascii_whitespace().take(index).any(is_name_of) {
                return Err(OptionsError::Twice(name));
            }
            options.set(name, value)?;
        }
        Ok(options)
    }

    /// When migration starts, microseconds after the guest did. A guest that starts it
    /// by a word is waited for.
    pub fn migrate_after_us(&self) -> u64 {
        let usual = match self.migrate_on {
            Some(_) => u64::MAX,
            None => MIGRATE_AFTER_US,
        };
        self.migrate_after_us.unwrap_or(usual)
    }

    fn set(&mut self, name: &'a str, value: &'a str) -> Result<(), OptionsError<'a>> {
        let or_allowed = |allowed| OptionsError::Value {
            option: name,
            value,
            allowed,
        };
        match name {
            "role" => {
                self.role = Role::ALL
                    .into_iter()
                    .find(|role| role.name() == value)
                    .ok_or(or_allowed("source, destination or none"))?;
            }
            "memory" => {
                self.memory = size(value)
                    .filter(|bytes| (1..=MAX_MEMORY).contains(bytes))
                    .filter(|bytes| bytes.is_multiple_of(MEMORY_GRANULE))
                    .ok_or(or_allowed("a multiple of 2M up to 3G, for example 64M"))?;
            }
            "viommu" => {
                self.viommu = Kind::ALL
                    .into_iter()
                    .find(|kind| kind.name() == value)
                    .ok_or(or_allowed("vtd or virtio"))?;
            }
            "vcpus" => {
                self.vcpus = match value {
                    "1" => 1,
                    "2" => 2,
                    _ => return Err(or_allowed("1 or 2")),
                };
            }
            "max-bandwidth" => {
                let bytes = size(value)
                    .filter(|bytes| *bytes >= MIN_BANDWIDTH)
                    .ok_or(or_allowed("64K bytes a second or more, for example 32M"))?;
                self.max_bandwidth = Some(bytes);
            }
            "downtime-limit" => {
                self.downtime_limit_us =
                    span_us(value).ok_or(or_allowed("a time, for example 300ms"))?;
            }
            "migrate-after" => {
                let us = span_us(value).ok_or(or_allowed("a time, for example 500ms or 2s"))?;
                self.migrate_after_us = Some(us);
            }
            "migrate-on" => {
                if !(1..=MAX_CUE).contains(&value.len()) {
                    return Err(or_allowed("a word of at most 64 bytes"));
                }
                self.migrate_on = Some(value);
            }
            "verify" => self.verify = switch(value).ok_or(or_allowed(SWITCH))?,
            "interrupt-remapping" => {
                self.interrupt_remapping = switch(value).ok_or(or_allowed(SWITCH))?;
            }
            "sabotage" => {
                let sabotage = Sabotage::from_name(value).ok_or(or_allowed(SABOTAGES))?;
                if !cfg!(feature = "sabotage") {
                    return Err(OptionsError::NotBreakable(value));
                }
                self.sabotage = Some(sabotage);
            }
            _ => return Err(OptionsError::Unknown(name)),
        }
        Ok(())
    }
}

const SABOTAGES: &str = "unmap-report, unmap-order, cpu-dirty, iotlb, mapped-dirty, emulation-dirty, evidence-drain or \
     interrupt-remapping";

const SWITCH: &str = "on or off";

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Splits at the first word that is `--`: what is before it, and what is after.
fn split_at_dashes(line: &str) -> (&str, &str) {
    let is_dashes = |at: &usize| {
        let (before, after) = (&line[..*at], &line[at + 2..]);
        (before.is_empty() || before.ends_with(' ')) && (after.is_empty() || after.starts_with(' '))
    };
    match line.match_indices("--").map(|(at, _)| at).find(is_dashes) {
        Some(at) => (&line[..at], line[at + 2..].trim_ascii_start()),
        None => (line, ""),
    }
}

/// A number with one of these suffixes, multiplied by what the suffix stands for.
fn scaled(text: &str, suffixes: &[(&str, u64)]) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = &text[digits.len()..];
    let (_, factor) = suffixes.iter().find(|(name, _)| *name == suffix)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Bytes: `4096`, `64K`, `64M`, `1G`.
fn size(text: &str) -> Option<u64> {
    scaled(
        text,
        &[("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)],
    )
}

/// Microseconds: `300ms`, `2s`, `50us`.
fn span_us(text: &str) -> Option<u64> {
    scaled(text, &[("us", 1), ("ms", 1000), ("s", 1_000_000)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_means_the_defaults() {
        assert_eq!(Options::parse(""), Ok(Options::default()));
        assert_eq!(Options::parse("  "), Ok(Options::default()));
    }

    #[test]
    fn every_option_is_understood() {
        let line = "role=source memory=128M vcpus=2 viommu=virtio max-bandwidth=4M downtime-limit=500ms \
                    migrate-after=2s migrate-on=now verify=on \
                    interrupt-remapping=off -- seed=7  role=x --";
        let expected = Options {
            role: Role::Source,
            memory: 128 << 20,
            viommu: Kind::Virtio,
            interrupt_remapping: false,
            vcpus: 2,
            max_bandwidth: Some(4 << 20),
            downtime_limit_us: 500_000,
            migrate_after_us: Some(2_000_000),
            migrate_on: Some("now"),
            verify: true,
            sabotage: None,
            guest: "seed=7  role=x --",
        };
        assert_eq!(Options::parse(line), Ok(expected));
    }

    #[test]
    fn migration_waits_for_its_word_unless_a_time_is_given_too() {
        let after = |line| Options::parse(line).unwrap().migrate_after_us();
        assert_eq!(after(""), MIGRATE_AFTER_US);
        assert_eq!(after("migrate-on=now"), u64::MAX);
        assert_eq!(after("migrate-on=now migrate-after=1s"), 1_000_000);
        Options::parse("migrate-on=").unwrap_err();
    }

    #[test]
    fn dashes_within_a_word_do_not_begin_the_guests_line() {
        assert_eq!(
            Options::parse("--role=source").unwrap_err(),
            OptionsError::Unknown("--role")
        );
        assert_eq!(Options::parse("-- a").unwrap().guest, "a");
        assert_eq!(Options::parse("role=none --").unwrap().guest, "");
    }

    #[test]
    fn the_message_names_the_word_and_what_is_allowed() {
        let message = |line| Options::parse(line).unwrap_err().to_string();
        assert!(
            message("colour=red").contains("\"colour\"")
                && message("colour=red").contains("memory")
        );
        assert!(message("fast").contains("\"fast\""));
        assert!(message("memory=lots").contains("memory=lots: allowed is a multiple of 2M"));
        assert!(message("role=boss").contains("source, destination or none"));
        assert!(message("verify=on verify=off").contains("\"verify\" is given twice"));
        assert!(message("sabotage=all").contains("unmap-report"));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for line in [
            "memory=0",
            "memory=3M",
            "memory=4G",
            "memory=-2M",
            "memory=2Mx",
            "memory=",
            "vcpus=0",
            "vcpus=3",
            "memory=+2M",
            "memory=99999999999999999999",
            "memory=18446744073709551615G",
            "max-bandwidth=0",
            "max-bandwidth=63K",
            "downtime-limit=5",
            "migrate-after=5m",
            "downtime-limit=ms",
        ] {
            assert!(
                matches!(Options::parse(line), Err(OptionsError::Value { .. })),
                "{line}"
            );
        }
    }

    #[test]
    fn the_list_of_sabotages_names_each() {
        for sabotage in Sabotage::ALL {
            assert!(SABOTAGES.contains(sabotage.name()));
        }
    }

    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn an_ordinary_image_refuses_sabotage() {
        assert_eq!(
            Options::parse("sabotage=iotlb"),
            Err(OptionsError::NotBreakable("iotlb"))
        );
    }
}
