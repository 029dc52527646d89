//! Sizes and times as operators write them: `64M`, `500ms`.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written with an optional binary suffix K, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// `count` times 2^20 bytes, saturating.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The sum, saturating.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (digits, shift) = match text.chars().last() {
            Some('K') => (&text[..text.len() - 1], 10),
            Some('M') => (&text[..text.len() - 1], 20),
            Some('G') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let count: u64 = digits.parse().ok().with_context(|| {
            format!("`{text}` is no size: write a whole number and perhaps K, M or G, like 64M")
        })?;
        let bytes = count
            .checked_mul(1 << shift)
            .with_context(|| format!("`{text}` does not fit 64 bits"))?;
        Ok(Self(bytes))
    }
}

/// Written so that [`FromStr`] and the hypervisor's command line read it back.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Bytes for people, rounded: `3.9 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    let float = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", float / 1024.0),
        _ => format!("{:.1} MiB", float / 1_048_576.0),
    }
}

/// A span of time in whole milliseconds, written with `ms` or `s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

impl Span {
    /// `count` milliseconds.
    pub const fn ms(count: u64) -> Self {
        Self(count)
    }

    /// `count` seconds, saturating.
    pub const fn seconds(count: u64) -> Self {
        Self(count.saturating_mul(1000))
    }

    /// The same for the standard library.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Span {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (digits, unit) = if let Some(digits) = text.strip_suffix("ms") {
            (digits, 1)
        } else if let Some(digits) = text.strip_suffix('s') {
            (digits, 1000)
        } else {
            bail!("`{text}` has no unit: write a whole number and ms or s, like 500ms");
        };
        let count: u64 = digits.parse().ok().with_context(|| {
            format!("`{text}` is no time: write a whole number and ms or s, like 500ms")
        })?;
        let ms = count
            .checked_mul(unit)
            .with_context(|| format!("`{text}` does not fit 64 bits"))?;
        Ok(Self(ms))
    }
}

/// Written so that [`FromStr`] and the hypervisor's command line read it back.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_reads_back() {
        for text in ["0", "1000", "3K", "64M", "2G"] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("2s".parse::<Span>().unwrap().to_string(), "2000ms");
        assert_eq!("64M".parse::<Size>().unwrap(), Size::mib(64));
    }

    #[test]
    fn a_bad_number_is_named_and_what_is_allowed_is_shown() {
        for text in ["", "M", "12Q", "-1M", "é"] {
            let message = text.parse::<Size>().unwrap_err().to_string();
            assert!(
                message.contains(text) && message.contains("64M"),
                "{message}"
            );
        }
        for text in ["5", "ms", "1.5s", "5m"] {
            let message = text.parse::<Span>().unwrap_err().to_string();
            assert!(
                message.contains(text) && message.contains("500ms"),
                "{message}"
            );
        }
        assert!("99999999999999G".parse::<Size>().is_err());
    }
}
