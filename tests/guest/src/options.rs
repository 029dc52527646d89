//! The guest's command line.

use crate::ledger::MAX_PAGES;

/// What the guest does before it checks its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The planned operations.
    Work,
    /// Feeds the IOMMU garbage first, then does the planned operations.
    Garbage,
    /// Has the device transfer where nothing is mapped, between operations.
    Stray,
    /// Has the device send interrupt requests that it was not granted, between
    /// operations.
    Forge,
    /// Misuses its CPU, ports and configuration space first, and checks the answers,
    /// then does the planned operations.
    Hostile,
    /// Ends with a triple fault.
    TripleFault,
}

/// The options, all of the form `name=value`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Selects the plan.
    pub seed: u64,
    /// How many operations are done.
    pub operations: u32,
    /// How many pages are in play at the most; fewer if memory is smaller.
    pub pages: usize,
    /// What else is done.
    pub mode: Mode,
    /// Whether the guest is discontent when it was not told of each transfer that
    /// its IOMMU refused. Some hardware beneath the guest's IOMMU does not tell.
    pub faults_matter: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            operations: 2000,
            pages: MAX_PAGES,
            mode: Mode::Work,
            faults_matter: true,
        }
    }
}

/// A word of the command line that is not an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "'{0}' is no option: seed=NUMBER, operations=NUMBER, pages=NUMBER, \
     mode=work|garbage|stray|forge|hostile|triple-fault, faults=reported|unreported"
)]
pub struct BadOption<'a>(pub &'a str);

impl Options {
    /// Reads a command line of words separated by white space.
    pub fn parse(line: &str) -> Result<Self, BadOption<'_>> {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let bad = || BadOption(word);
            let (name, value) = word.split_once('=').ok_or_else(bad)?;
            match name {
                "seed" => options.seed = value.parse().map_err(|_| bad())?,
                "operations" => options.operations = value.parse().map_err(|_| bad())?,
                "pages" => options.pages = value.parse().map_err(|_| bad())?,
                "mode" => {
                    options.mode = match value {
                        "work" => Mode::Work,
                        "garbage" => Mode::Garbage,
                        "stray" => Mode::Stray,
                        "forge" => Mode::Forge,
                        "hostile" => Mode::Hostile,
                        "triple-fault" => Mode::TripleFault,
                        _ => return Err(bad()),
                    }
                }
                "faults" => {
                    options.faults_matter = match value {
                        "reported" => true,
                        "unreported" => false,
                        _ => return Err(bad()),
                    }
                }
                _ => return Err(bad()),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_a_bad_one_is_named() {
        let options = Options::parse(" seed=7 operations=10  mode=stray").unwrap();
        assert_eq!((options.seed, options.operations), (7, 10));
        assert_eq!(options.mode, Mode::Stray);
        assert!(options.faults_matter);
        assert!(!Options::parse("faults=unreported").unwrap().faults_matter);
        for bad in [
            "faults=maybe",
            "sed=7",
            "seed",
            "seed=x",
            "mode=fast",
            "operations=-1",
        ] {
            assert_eq!(Options::parse(bad), Err(BadOption(bad)));
        }
    }
}
