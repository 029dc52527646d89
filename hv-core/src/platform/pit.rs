//! The counters of an 8254 interval timer, and port 61h.
//!
//! Intel 8254 data sheet, sections "Programming" and "Mode Definitions". Nothing is
//! wired to the outputs except that of counter 2, which port 61h shows: kernels
//! measure their time stamp counter with it. Gates are always open, counting is
//! binary, and the read-back command is not there.

use super::time::Time;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The port of counter 0; those of 1 and 2 and the control word follow.
pub const FIRST_PORT: u16 = 0x40;
/// The control word.
pub const LAST_PORT: u16 = 0x43;
/// Gate and output of counter 2.
pub const SPEAKER_PORT: u16 = 0x61;

const HZ: u32 = 1_193_182;
/// Port 61h: the gate and the speaker, as they were written.
const SPEAKER_WRITABLE: u8 = 0b11;
/// Port 61h: the output of counter 2.
const OUTPUT: u8 = 1 << 5;
/// Control word, access: low byte, then high byte.
const BOTH_BYTES: u8 = 3;
const HIGH_BYTE: u8 = 2;

/// The state of one counter. The layout is fixed: these bytes migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
struct Counter {
    /// When the count began, in nanoseconds.
    start: u64,
    reload: u16,
    latched: u16,
    /// 0 to 5.
    mode: u8,
    /// 1: low byte, 2: high byte, 3: both in this order.
    access: u8,
    /// 1 while the high byte is the next one to be written.
    writes_high: u8,
    /// 1 while the high byte is the next one to be read.
    reads_high: u8,
    /// 1 from a latch command until the value was read.
    is_latched: u8,
    reserved: [u8; 7],
}

/// The state of the timer. The layout is fixed: these bytes migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PitState {
    counters: [Counter; 3],
    speaker: u8,
    reserved: [u8; 7],
}

/// The timer.
#[derive(Default)]
pub struct Pit(PitState);

impl Pit {
    /// Reads port 40h to 43h.
    pub fn read(&mut self, port: u16, now: Time) -> u8 {
        let index = usize::from(port.wrapping_sub(FIRST_PORT));
        match self.0.counters.get_mut(index) {
            Some(counter) => counter.read(now),
            None => 0xff,
        }
    }

    /// Writes port 40h to 43h.
    pub fn write(&mut self, port: u16, value: u8, now: Time) {
        let index = usize::from(port.wrapping_sub(FIRST_PORT));
        match self.0.counters.get_mut(index) {
            Some(counter) => counter.write(value, now),
            None => self.control(value, now),
        }
    }

    /// Reads port 61h.
    pub fn read_speaker(&self, now: Time) -> u8 {
        let [_, _, counter] = &self.0.counters;
        let output = if counter.is_high(now) { OUTPUT } else { 0 };
        self.0.speaker | output
    }

    /// Writes port 61h.
    pub fn write_speaker(&mut self, value: u8) {
        self.0.speaker = value & SPEAKER_WRITABLE;
    }

    /// The state of the timer.
    pub fn save(&self) -> PitState {
        self.0
    }

    /// A timer in a state from outside, unless it is impossible.
    pub fn restored(state: &PitState) -> Option<Self> {
        let valid = state.counters.iter().all(Counter::is_valid)
            && state.speaker & !SPEAKER_WRITABLE == 0
            && state.reserved == [0; 7];
        valid.then_some(Self(*state))
    }

    /// Bits 7:6 choose the counter, 5:4 latch it (0) or set how it is accessed,
    /// 3:1 set its mode.
    fn control(&mut self, value: u8, now: Time) {
        let Some(counter) = self.0.counters.get_mut(usize::from(value >> 6)) else {
            return;
        };
        match value >> 4 & 3 {
            0 => counter.latch(now),
            access => {
                // Modes 2 and 3 have two codes each.
                let mode = match value >> 1 & 7 {
                    mode @ 0..6 => mode,
                    mode => mode - 4,
                };
                *counter = Counter {
                    start: now.ns(),
                    mode,
                    access,
                    ..Counter::default()
                };
            }
        }
    }
}

impl Counter {
    fn read(&mut self, now: Time) -> u8 {
        let value = match self.is_latched {
            0 => self.count(now),
            _ => self.latched,
        };
        let [low, high] = value.to_le_bytes();
        let is_high = self.access == HIGH_BYTE || self.reads_high != 0;
        if self.access == BOTH_BYTES {
            self.reads_high ^= 1;
        }
        if self.reads_high == 0 {
            self.is_latched = 0;
        }
        if is_high { high } else { low }
    }

    fn write(&mut self, value: u8, now: Time) {
        let [low, high] = self.reload.to_le_bytes();
        let is_high = self.access == HIGH_BYTE || self.writes_high != 0;
        let bytes = if is_high { [low, value] } else { [value, high] };
        self.reload = u16::from_le_bytes(bytes);
        if self.access == BOTH_BYTES {
            self.writes_high ^= 1;
        }
        self.start = now.ns();
    }

    fn latch(&mut self, now: Time) {
        if self.is_latched == 0 {
            self.latched = self.count(now);
            self.is_latched = 1;
        }
    }

    fn clocks(&self, now: Time) -> u64 {
        Time::from_ns(now.since(Time::from_ns(self.start))).clocks(HZ)
    }

    /// What a reload of 0 stands for is 65536.
    fn period(&self) -> u64 {
        match self.reload {
            0 => 0x1_0000,
            reload => reload.into(),
        }
    }

    fn count(&self, now: Time) -> u16 {
        let (clocks, period) = (self.clocks(now), self.period());
        let left = match self.mode {
            2 => period - clocks % period,
            // A square wave counts by two.
            3 => period - clocks.wrapping_mul(2) % period,
            _ => period.wrapping_sub(clocks),
        };
        left as u16
    }

    /// The output, in mode 0: high from the end of the count on. Others are shown
    /// as high: nobody looks.
    fn is_high(&self, now: Time) -> bool {
        self.mode != 0 || self.clocks(now) >= self.period()
    }

    fn is_valid(&self) -> bool {
        let flags = [self.writes_high, self.reads_high, self.is_latched];
        self.mode < 6
            && self.access <= BOTH_BYTES
            && flags.iter().all(|flag| *flag < 2)
            && self.reserved == [0; 7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER_2: u16 = FIRST_PORT + 2;

    /// The time after this many clocks.
    fn after(clocks: u64) -> Time {
        Time::from_ns((clocks * 1_000_000_000).div_ceil(u64::from(HZ)))
    }

    #[test]
    fn counter_2_measures_time() {
        let mut pit = Pit::default();
        pit.write(LAST_PORT, 0xb0, after(0));
        pit.write(COUNTER_2, 0xff, after(0));
        pit.write(COUNTER_2, 0xff, after(0));
        let mut read = |clocks| {
            let low = pit.read(COUNTER_2, after(clocks));
            u16::from_le_bytes([low, pit.read(COUNTER_2, after(clocks))])
        };
        assert_eq!(read(0), 0xffff);
        assert_eq!(read(0x1234), 0xffff - 0x1234);
        assert_eq!(pit.read_speaker(after(0xfffe)) & OUTPUT, 0);
        assert_eq!(pit.read_speaker(after(0xffff)) & OUTPUT, OUTPUT);
    }

    #[test]
    fn a_latched_value_stays_until_it_was_read() {
        let mut pit = Pit::default();
        pit.write(LAST_PORT, 0x34, after(0));
        pit.write(FIRST_PORT, 100, after(0));
        pit.write(FIRST_PORT, 0, after(0));
        pit.write(LAST_PORT, 0, after(30));
        assert_eq!(pit.read(FIRST_PORT, after(50)), 70);
        assert_eq!(pit.read(FIRST_PORT, after(50)), 0);
        assert_eq!(pit.read(FIRST_PORT, after(150)), 50, "it reloads");
    }

    #[test]
    fn impossible_states_are_refused() {
        let mut state = Pit::default().save();
        assert!(Pit::restored(&state).is_some());
        state.counters[1].mode = 6;
        assert!(Pit::restored(&state).is_none());
    }
}
