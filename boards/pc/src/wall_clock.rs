//! The time of day, from the machine's real-time clock.
#![allow(unsafe_code)]

use hv_core::platform::rtc;
use x86_64::instructions::port::{Port, PortWriteOnly};

/// How often the clock is looked at. An update takes two milliseconds at the most, a
/// look at all registers some microseconds.
const LOOKS: u32 = 10_000;
/// The registers that are looked at are below.
const REGISTERS: usize = rtc::CENTURY as usize + 1;
/// A century to believe; a clock that does not keep it shows something else there.
const CENTURIES: core::ops::RangeInclusive<u8> = 0x20..=0x21;

/// The time in seconds since 1970 UTC; `None` if the clock does not show one. To be
/// called by one CPU at a time.
pub fn read() -> Option<i64> {
    let mut before = None;
    for _ in 0..LOOKS {
        // Twice the same, and no update was under way: nothing changed in between.
        let look = look();
        if look.is_some() && look == before {
            return rtc::seconds(|index| at(&look, index));
        }
        before = look;
    }
    None
}

type Look = Option<[u8; REGISTERS]>;

fn at(look: &Look, index: u8) -> u8 {
    let value = look.and_then(|registers| registers.get(usize::from(index)).copied());
    match (index, value.unwrap_or(0)) {
        (rtc::CENTURY, value) if !CENTURIES.contains(&value) => *CENTURIES.start(),
        (_, value) => value,
    }
}

/// All registers, unless the clock is about to change them.
fn look() -> Look {
    if rtc::is_updating(register) {
        return None;
    }
    Some(core::array::from_fn(|index| register(index as u8)))
}

fn register(index: u8) -> u8 {
    // SAFETY: selecting and reading registers of a real-time clock, or of nothing,
    // cannot write to memory; the caller's caller keeps other CPUs out.
    unsafe {
        PortWriteOnly::new(rtc::INDEX_PORT).write(index);
        Port::new(rtc::DATA_PORT).read()
    }
}
