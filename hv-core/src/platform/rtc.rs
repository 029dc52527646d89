//! The real-time clock, ports 70h and 71h, with its CMOS memory.
//!
//! Motorola MC146818 data sheet. It keeps the time, in every format that register B
//! selects, and 114 bytes; the century is where ACPI's FADT says. Its interrupt line
//! is not wired, which the DSDT says: alarm and periodic interrupts never come.
//!
//! It goes by the guest's time, from the moment that the image gives it at the
//! guest's start. So it agrees with every other clock of the guest, and after a
//! migration all are behind the truth by the downtime.

use super::time::Time;
use time::{Date, Month, OffsetDateTime};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Selects a register.
pub const INDEX_PORT: u16 = 0x70;
/// Reads and writes it.
pub const DATA_PORT: u16 = 0x71;
/// The register of the century.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
/// 1 is Sunday.
const DAY_OF_WEEK: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REGISTER_A: u8 = 10;
const REGISTER_B: u8 = 11;
const REGISTER_C: u8 = 12;
const REGISTER_D: u8 = 13;

/// Register A: the time is about to change.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// For so long before each second.
const UPDATE_NS: u64 = 244_000;
/// Register B: the time stands still, to be set.
const SET: u8 = 1 << 7;
/// Register B: binary numbers, not packed decimal ones.
const BINARY: u8 = 1 << 2;
/// Register B: 24 hours, not 12.
const HOURS_24: u8 = 1 << 1;
/// Hours: afternoon, with 12 hours.
const AFTERNOON: u8 = 1 << 7;
/// Register D: the contents are valid.
const VALID: u8 = 1 << 7;

const NS: u64 = 1_000_000_000;

/// The state of the clock. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RtcState {
    /// Seconds since 1970 at the guest's time 0.
    origin: i64,
    /// The registers; those of the time count while it stands still.
    memory: [u8; 128],
    /// The register that is selected.
    index: u8,
    reserved: [u8; 7],
}

/// What a clock of this kind shows, in seconds since 1970, if it is a time. `read`
/// reads its registers, in the format that its register B says.
pub fn seconds(read: impl Fn(u8) -> u8) -> Option<i64> {
    let format = read(REGISTER_B);
    let decoded = |value: u8| match format & BINARY {
        0 => (value >> 4) * 10 + (value & 0xf),
        _ => value,
    };
    let field = |index| decoded(read(index));
    let hour = match (format & HOURS_24, read(HOURS)) {
        (0, hours) => {
            let afternoon = if hours & AFTERNOON != 0 { 12 } else { 0 };
            decoded(hours & !AFTERNOON) % 12 + afternoon
        }
        (_, hours) => decoded(hours),
    };
    let year = i32::from(field(CENTURY)) * 100 + i32::from(field(YEAR));
    let month = Month::try_from(field(MONTH)).ok()?;
    let date = Date::from_calendar_date(year, month, field(DAY)).ok()?;
    let moment = date.with_hms(hour, field(MINUTES), field(SECONDS)).ok()?;
    Some(moment.assume_utc().unix_timestamp())
}

/// Whether a clock of this kind is about to change what it shows. `read` reads its
/// registers.
pub fn is_updating(read: impl Fn(u8) -> u8) -> bool {
    read(REGISTER_A) & UPDATE_IN_PROGRESS != 0
}

/// The clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rtc(RtcState);

impl Rtc {
    /// A clock that shows `start`, in seconds since 1970 UTC, at the guest's time 0.
    pub fn new(start: i64) -> Self {
        let mut memory = [0; 128];
        // The divider for the usual crystal, and the usual rate.
        memory[usize::from(REGISTER_A)] = 0x26;
        memory[usize::from(REGISTER_B)] = HOURS_24;
        Self(RtcState {
            origin: start,
            memory,
            index: 0,
            reserved: [0; 7],
        })
    }

    /// Reads one of the two ports.
    pub fn read(&self, port: u16, now: Time) -> u8 {
        // The index cannot be read back.
        if port == INDEX_PORT {
            return u8::MAX;
        }
        let index = self.0.index;
        match index {
            REGISTER_A => self.memory(index) & !UPDATE_IN_PROGRESS | self.update_in_progress(now),
            REGISTER_C => 0,
            REGISTER_D => VALID,
            _ if self.is_set() => self.memory(index),
            _ => self.time_register(index, now).unwrap_or(self.memory(index)),
        }
    }

    /// Writes one of the two ports.
    pub fn write(&mut self, port: u16, value: u8, now: Time) {
        if port == INDEX_PORT {
            // Bit 7 masks NMIs on a PC; there are none.
            self.0.index = value & 0x7f;
            return;
        }
        let index = self.0.index;
        match index {
            REGISTER_B => self.write_b(value, now),
            REGISTER_C | REGISTER_D => {}
            _ if self.is_set() || self.time_register(index, now).is_none() => {
                self.set_memory(index, value);
            }
            _ => {
                self.freeze(now);
                self.set_memory(index, value);
                self.thaw(now);
            }
        }
    }

    /// The state of the clock.
    pub fn save(&self) -> RtcState {
        self.0
    }

    /// A clock in a state from outside. All are possible: a time that is out of range
    /// reads as 1970.
    pub fn restored(state: &RtcState) -> Self {
        let mut state = *state;
        state.index &= 0x7f;
        state.reserved = [0; 7];
        Self(state)
    }

    /// The time stands still from when it is to be set until it has been.
    fn write_b(&mut self, value: u8, now: Time) {
        let was_set = self.is_set();
        if !was_set && value & SET != 0 {
            self.freeze(now);
        }
        self.set_memory(REGISTER_B, value);
        if was_set && value & SET == 0 {
            self.thaw(now);
        }
    }

    fn is_set(&self) -> bool {
        self.memory(REGISTER_B) & SET != 0
    }

    fn update_in_progress(&self, now: Time) -> u8 {
        let is_near = now.ns() % NS >= NS - UPDATE_NS;
        if is_near && !self.is_set() {
            UPDATE_IN_PROGRESS
        } else {
            0
        }
    }

    /// Puts the time into its registers.
    fn freeze(&mut self, now: Time) {
        for index in 0..=CENTURY {
            if let Some(value) = self.time_register(index, now) {
                self.set_memory(index, value);
            }
        }
    }

    /// Goes on from what is in the registers, if that is a time.
    fn thaw(&mut self, now: Time) {
        if let Some(shown) = seconds(|index| self.memory(index)) {
            self.0.origin = shown.saturating_sub_unsigned(now.ns() / NS);
        }
    }

    /// What a register of the time reads while that passes; `None` for the others.
    fn time_register(&self, index: u8, now: Time) -> Option<u8> {
        let seconds = self.0.origin.saturating_add_unsigned(now.ns() / NS);
        let moment =
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let year = moment.year().unsigned_abs();
        let value = match index {
            SECONDS => moment.second(),
            MINUTES => moment.minute(),
            HOURS => return Some(self.hours(moment.hour())),
            DAY_OF_WEEK => moment.weekday().number_from_sunday(),
            DAY => moment.day(),
            MONTH => moment.month().into(),
            YEAR => (year % 100) as u8,
            CENTURY => (year / 100 % 100) as u8,
            _ => return None,
        };
        Some(self.encoded(value))
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.memory(REGISTER_B) & HOURS_24 != 0 {
            return self.encoded(hour);
        }
        let afternoon = if hour >= 12 { AFTERNOON } else { 0 };
        self.encoded((hour + 11) % 12 + 1) | afternoon
    }

    fn encoded(&self, value: u8) -> u8 {
        match self.memory(REGISTER_B) & BINARY {
            0 => ((value / 10) << 4) | (value % 10),
            _ => value,
        }
    }

    fn memory(&self, index: u8) -> u8 {
        self.0.memory.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn set_memory(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.0.memory.get_mut(usize::from(index)) {
            *byte = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const START: i64 = 1_709_251_198;
    const NOW: Time = Time::from_ns(0);
    const fn after(seconds: u64) -> Time {
        Time::from_ns(seconds * NS)
    }

    fn get(rtc: &mut Rtc, index: u8, now: Time) -> u8 {
        rtc.write(INDEX_PORT, index, now);
        rtc.read(DATA_PORT, now)
    }

    fn set(rtc: &mut Rtc, index: u8, value: u8, now: Time) {
        rtc.write(INDEX_PORT, index, now);
        rtc.write(DATA_PORT, value, now);
    }

    fn shown(rtc: &mut Rtc, now: Time) -> [u8; 8] {
        [
            CENTURY,
            YEAR,
            MONTH,
            DAY,
            DAY_OF_WEEK,
            HOURS,
            MINUTES,
            SECONDS,
        ]
        .map(|index| get(rtc, index, now))
    }

    #[test]
    fn time_passes_over_a_leap_day() {
        let mut rtc = Rtc::new(START);
        let before = [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58];
        assert_eq!(shown(&mut rtc, NOW), before);
        let midnight = [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0];
        assert_eq!(shown(&mut rtc, after(2)), midnight);
    }

    #[test]
    fn every_format_reads_as_it_is_written() {
        for format in [0, HOURS_24, BINARY, BINARY | HOURS_24] {
            for hour in 0..24 {
                let mut rtc = Rtc::new(hour * 3600);
                set(&mut rtc, REGISTER_B, format, NOW);
                let hours = get(&mut rtc, HOURS, NOW);
                set(&mut rtc, HOURS, hours, NOW);
                assert_eq!(rtc.0.origin, hour * 3600, "{format} {hours:#x}");
            }
        }
        let mut rtc = Rtc::new(0);
        set(&mut rtc, REGISTER_B, 0, NOW);
        assert_eq!(get(&mut rtc, HOURS, NOW), 0x12, "midnight");
        assert_eq!(get(&mut rtc, HOURS, after(13 * 3600)), 0x81, "one o'clock");
    }

    #[test]
    fn the_time_stands_still_while_it_is_set_and_goes_on_from_there() {
        let mut rtc = Rtc::new(START);
        set(&mut rtc, REGISTER_B, SET | HOURS_24, after(1));
        assert_eq!(get(&mut rtc, SECONDS, after(30)), 0x59);
        // 30 February in between.
        let new = [
            (MONTH, 2),
            (DAY, 0x30),
            (MONTH, 3),
            (SECONDS, 0x10),
            (HOURS, 7),
        ];
        for (index, value) in new {
            set(&mut rtc, index, value, after(31));
        }
        set(&mut rtc, REGISTER_B, HOURS_24, after(40));
        let expected = [0x20, 0x24, 0x03, 0x30, 7, 0x07, 0x59, 0x15];
        assert_eq!(shown(&mut rtc, after(45)), expected);
    }

    #[test]
    fn what_is_no_time_is_not_taken_over() {
        let mut rtc = Rtc::new(START);
        set(&mut rtc, MONTH, 0x99, NOW);
        assert_eq!(get(&mut rtc, MONTH, NOW), 2);
        let mut state = rtc.save();
        state.origin = i64::MAX;
        let mut far = Rtc::restored(&state);
        assert_eq!(get(&mut far, YEAR, NOW), 0x70);
        // Nothing that a guest or a stream can bring about panics.
        for byte in 0..=u8::MAX {
            state.memory = [byte; 128];
            let mut rtc = Rtc::restored(&state);
            for index in 0..=u8::MAX {
                get(&mut rtc, index, Time::from_ns(u64::MAX));
                set(&mut rtc, index, byte, Time::from_ns(u64::MAX));
            }
        }
    }

    #[test]
    fn an_update_is_announced_and_memory_kept() {
        let mut rtc = Rtc::new(START);
        assert_eq!(get(&mut rtc, REGISTER_A, NOW), 0x26);
        let near = Time::from_ns(NS - 1);
        assert_eq!(get(&mut rtc, REGISTER_A, near), 0xa6);
        assert_eq!(get(&mut rtc, REGISTER_D, NOW), VALID);
        set(&mut rtc, 0x40, 0x5a, NOW);
        assert_eq!(get(&mut Rtc::restored(&rtc.save()), 0x40, NOW), 0x5a);
    }
}
