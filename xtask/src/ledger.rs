//! What the test guest says on its console.
//!
//! The console carries free text; lines that start with `ledger: ` are for us:
//!
//! ```text
//! ledger: verified=4096 lost=2 device_last=57 faults=3 faults_expected=3 operations=600
//! ledger: lost gfn=0x123 last=device operation=17
//! ```

use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;

const PREFIX: &str = "ledger: ";

/// One line of the guest's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The account at the guest's end.
    Account(Account),
    /// One page that does not hold what was last written to it.
    Lost(LostPage),
}

/// The account at the guest's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Pages compared with the ledger and found right.
    pub verified: u64,
    /// Pages compared and found wrong.
    pub lost: u64,
    /// Pages whose last writer was the device, just before their unmap.
    pub device_last: u64,
    /// DMA faults that the guest's IOMMU reported to it.
    pub faults: u64,
    /// DMA faults that the guest provoked.
    pub faults_expected: u64,
    /// Operations done.
    pub operations: u64,
}

/// A page that lost a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostPage {
    /// The guest frame number.
    pub gfn: u64,
    /// Who wrote it last: `device` or `cpu`.
    pub last: String,
    /// The operation, from 0 on, that wrote it last.
    pub operation: u64,
}

impl Line {
    /// Reads one line of the console; `None` if it is free text.
    ///
    /// # Errors
    /// A ledger line lacks a member, or one is no number.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        let Some(text) = line.trim_end().strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let line = match text.strip_prefix("lost ") {
            Some(rest) => Self::Lost(LostPage::from_members(&Members::split(rest)?)?),
            None => Self::Account(Account::from_members(&Members::split(text)?)?),
        };
        Ok(Some(line))
    }
}

impl Account {
    fn from_members(members: &Members<'_>) -> Result<Self> {
        Ok(Self {
            verified: members.number("verified")?,
            lost: members.number("lost")?,
            device_last: members.number("device_last")?,
            faults: members.number("faults")?,
            faults_expected: members.number("faults_expected")?,
            operations: members.number("operations")?,
        })
    }
}

impl LostPage {
    fn from_members(members: &Members<'_>) -> Result<Self> {
        Ok(Self {
            gfn: members.number("gfn")?,
            last: members.text("last")?.to_owned(),
            operation: members.number("operation")?,
        })
    }
}

/// The `key=value` pairs of a line.
struct Members<'t>(BTreeMap<&'t str, &'t str>);

impl<'t> Members<'t> {
    fn split(text: &'t str) -> Result<Self> {
        let pairs = text.split_whitespace().map(|pair| {
            pair.split_once('=')
                .with_context(|| format!("`{pair}` is not key=value"))
        });
        Ok(Self(pairs.collect::<Result<_>>()?))
    }

    fn text(&self, key: &str) -> Result<&'t str> {
        match self.0.get(key) {
            Some(value) => Ok(value),
            None => bail!("`{key}` is missing"),
        }
    }

    fn number(&self, key: &str) -> Result<u64> {
        let text = self.text(key)?;
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        number.with_context(|| format!("`{key}={text}` is no number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read() {
        let text = "ledger: verified=4096 lost=2 device_last=57 faults=3 faults_expected=3 operations=600\r";
        let Some(Line::Account(account)) = Line::parse(text).unwrap() else {
            panic!("no account");
        };
        assert_eq!((account.verified, account.lost), (4096, 2));
        assert_eq!((account.device_last, account.operations), (57, 600));
    }

    #[test]
    fn a_lost_page_is_named_by_frame() {
        let line = Line::parse("ledger: lost gfn=0x123 last=device operation=17").unwrap();
        let page = LostPage {
            gfn: 0x123,
            last: "device".into(),
            operation: 17,
        };
        assert_eq!(line, Some(Line::Lost(page)));
    }

    #[test]
    fn free_text_is_ignored_and_a_broken_ledger_line_is_not() {
        assert_eq!(Line::parse("edu: found").unwrap(), None);
        assert_eq!(Line::parse("").unwrap(), None);
        for broken in ["ledger: verified=1", "ledger: lost gfn=zz", "ledger: hello"] {
            Line::parse(broken).unwrap_err();
        }
    }
}
