//! The rules of the VFIO interface, and the tests that are named after them.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

/// Where the rules are listed, and where their tests are.
const LIST: &str = "iommu/src/vfio/rules.txt";
const TESTS: [&str; 2] = ["iommu/src", "iommu/tests"];
/// What the text of a rule without a test begins with.
const DESCRIBED: &str = "described:";

/// A rule's number: section and place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    section: char,
    place: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.section, self.place)
    }
}

/// A rule and its tests.
#[derive(Debug)]
pub struct Rule {
    /// Its number.
    pub number: Number,
    /// What it says, in a line.
    pub text: String,
    /// The tests named after it.
    pub tests: Vec<String>,
}

impl Rule {
    /// Whether it has a test, or says why it has none.
    pub fn is_covered(&self) -> bool {
        !self.tests.is_empty() || self.text.starts_with(DESCRIBED)
    }
}

/// All rules with their tests.
#[derive(Debug)]
pub struct Coverage {
    /// The rules, as they are listed.
    pub rules: Vec<Rule>,
    /// Tests named after rules that are not listed.
    pub strays: Vec<String>,
}

impl Coverage {
    /// Reads the list and looks for tests, in the repository at `root`.
    pub fn of(root: &Path) -> Result<Self> {
        let list = root.join(LIST);
        let list =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let mut sources = Vec::new();
        for directory in TESTS {
            read_sources(&root.join(directory), &mut sources)?;
        }
        Self::from_text(&list, sources.iter().map(String::as_str))
    }

    fn from_text<'a>(list: &str, sources: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut rules = parse(list)?;
        let mut strays = Vec::new();
        let mut tests = BTreeMap::<Number, Vec<String>>::new();
        for (number, test) in sources.flat_map(tests_in) {
            tests.entry(number).or_default().push(test.to_owned());
        }
        for rule in &mut rules {
            rule.tests = tests.remove(&rule.number).unwrap_or_default();
        }
        strays.extend(tests.into_values().flatten());
        Ok(Self { rules, strays })
    }

    /// Whether every rule is covered and every test has its rule.
    pub fn is_complete(&self) -> bool {
        self.strays.is_empty() && self.rules.iter().all(Rule::is_covered)
    }
}

fn parse(list: &str) -> Result<Vec<Rule>> {
    let mut rules = Vec::<Rule>::new();
    for line in list.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (number, text) = line.split_once(' ').unwrap_or((line, ""));
        let Some(number) = parse_number(number) else {
            bail!("{LIST} has a line without a rule's number: {line}");
        };
        if rules.iter().any(|rule| rule.number == number) {
            bail!("{LIST} lists {number} twice");
        }
        rules.push(Rule {
            number,
            text: text.trim().to_owned(),
            tests: Vec::new(),
        });
    }
    Ok(rules)
}

/// A letter and digits.
fn parse_number(text: &str) -> Option<Number> {
    let section = text.chars().next().filter(char::is_ascii_alphabetic)?;
    let place = &text[1..];
    let is_number = !place.is_empty() && place.bytes().all(|byte| byte.is_ascii_digit());
    Some(Number {
        section: section.to_ascii_uppercase(),
        place: is_number.then(|| place.parse().ok())??,
    })
}

/// The tests in a source file that are named after a rule: a line `#[test]`, maybe
/// other attributes, then `fn c09_...`.
fn tests_in(source: &str) -> Vec<(Number, &str)> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if is_test && !line.starts_with('#') {
            is_test = false;
            let name = line
                .strip_prefix("fn ")
                .and_then(|rest| rest.split('(').next());
            let number = name
                .and_then(|name| name.split('_').next())
                .filter(|number| number.len() == 3)
                .and_then(parse_number);
            found.extend(number.zip(name));
        }
    }
    found
}

fn read_sources(directory: &Path, sources: &mut Vec<String>) -> Result<()> {
    let unreadable = || format!("cannot read {}", directory.display());
    let mut paths = fs::read_dir(directory)
        .with_context(unreadable)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()
        .with_context(unreadable)?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            sources.push(source);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "# rules\n\nC9  no bisection\nD1  one flag\nF1  described: a driver's\n";

    fn complete(source: &str) -> bool {
        let coverage = Coverage::from_text(LISTED, [source].into_iter());
        coverage.unwrap().is_complete()
    }

    #[test]
    fn a_rule_is_covered_by_a_test_of_its_number_and_by_nothing_else() {
        let both = "#[test]\nfn c09_x() {}\n  #[test]\n  #[ignore]\n  fn d01_y() {}";
        assert!(complete(both));
        for wrong in [
            "#[test]\nfn c09_x() {}",
            "#[test]\nfn c09_x() {}\nfn d01_helper() {}",
            "#[test]\nfn c09_x() {}\n#[test]\nfn d1_y() {}",
            "#[test]\nfn c09_x() {}\n// fn d01_y() {}",
        ] {
            assert!(!complete(wrong), "{wrong}");
        }
        let stray = format!("{both}\n#[test]\nfn d02_z() {{}}");
        assert!(!complete(&stray));
    }

    #[test]
    fn a_list_with_a_line_that_is_no_rule_is_refused() {
        for bad in ["rule 9", "9C text", "C", "C9 a\nC9 b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
