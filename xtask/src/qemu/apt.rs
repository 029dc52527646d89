//! Reads APT's configuration: which sources this machine is allowed to use.
//!
//! A source to be added must point where the administrator's own sources point,
//! be that a mirror, a proxy or a snapshot, so nothing here names a host.

/// A place with packages: address and signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    uris: String,
    signed_by: Option<String>,
}

impl Source {
    /// The source of the release `codename` in the text of a `.sources` file
    /// (deb822 format, `man sources.list`).
    pub(super) fn from_deb822(text: &str, codename: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let mut stanzas = lines.split(|line| line.trim().is_empty());
        stanzas.find_map(|stanza| {
            let field = |name: &str| {
                stanza.iter().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim())
                })
            };
            let words = |name: &str, word: &str| field(name)?.split(' ').find(|&it| it == word);
            let enabled = field("Enabled").is_none_or(|value| value != "no");
            words("Types", "deb")?;
            words("Suites", codename)?;
            words("Components", "main")?;
            enabled.then_some(())?;
            Some(Self {
                uris: field("URIs")?.to_owned(),
                // A key written out over several lines is left to APT's own keyring.
                signed_by: field("Signed-By")
                    .filter(|key| key.starts_with('/'))
                    .map(str::to_owned),
            })
        })
    }

    /// The source of the release `codename` in the text of a `sources.list` file.
    pub(super) fn from_one_line(text: &str, codename: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let uri = words.next()?;
            let suite = words.next()?;
            let has_main = words.any(|component| component == "main");
            let signed_by = options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="));
            (suite == codename && has_main).then(|| Self {
                uris: uri.to_owned(),
                signed_by: signed_by.map(str::to_owned),
            })
        })
    }

    /// The same place's suite `suite`, as a deb822 stanza.
    pub(super) fn stanza(&self, suite: &str) -> String {
        let mut stanza = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
            self.uris
        );
        if let Some(key) = &self.signed_by {
            stanza += &format!("Signed-By: {key}\n");
        }
        stanza
    }
}

/// The candidate's version in what `apt-cache policy PACKAGE` prints.
pub(super) fn candidate(policy: &str) -> Option<&str> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# a comment
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

    #[test]
    fn the_releases_own_stanza_is_copied() {
        let source = Source::from_deb822(DEB822, "bookworm").unwrap();
        assert_eq!(
            source.stanza("bookworm-backports"),
            "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm-backports\n\
             Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        assert_eq!(Source::from_deb822(DEB822, "trixie"), None);
        let disabled = DEB822.replace("Signed-By", "Enabled: no\nSigned-By");
        assert_eq!(Source::from_deb822(&disabled, "bookworm"), None);
    }

    #[test]
    fn a_one_line_source_is_read_with_its_key() {
        let list = "# deb http://other.invalid bookworm main\n\
            deb-src http://mirror.invalid/debian bookworm main\n\
            deb http://mirror.invalid/security bookworm-security main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm main contrib\n";
        let source = Source::from_one_line(list, "bookworm").unwrap();
        assert_eq!(source.uris, "http://mirror.invalid/debian");
        assert_eq!(source.signed_by.as_deref(), Some("/k.gpg"));
    }

    #[test]
    fn the_candidate_is_read() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n";
        assert_eq!(candidate(policy), Some("1:7.2+dfsg-7"));
    }
}
