//! An initial file system for Linux: a cpio archive in the `newc` format (Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that grows.
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An empty one.
    pub(super) const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            entries: 0,
        }
    }

    /// Adds a directory, whose parent is there.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file that can be executed.
    pub(super) fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), contents);
    }

    /// Adds the console's device node.
    pub(super) fn console(&mut self, path: &str) {
        self.entry(path, CHARACTER_DEVICE, (5, 1), &[]);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries, // inode number
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time of modification
            contents.len() as u32,
            0, // device the file is on, major
            0, // and minor
            device.0,
            device.1,
            path.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_at_multiples_of_four_and_name_their_sizes() {
        let mut archive = Archive::new();
        archive.directory("a");
        archive.program("init", b"hello");
        archive.console("c");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0));
        let field = |entry: usize, index: usize| {
            let at = starts[entry] + 6 + index * 8;
            u32::from_str_radix(&text[at..at + 8], 16).unwrap()
        };
        assert_eq!((field(0, 1), field(0, 6)), (0o040_755, 0));
        assert_eq!((field(1, 6), field(1, 11)), (5, 5));
        assert_eq!((field(2, 9), field(2, 10)), (5, 1));
        assert!(text[starts[1]..].contains("init\0"));
        assert!(text.contains("hello\0\0\x00070701") && text.contains("TRAILER!!!\0"));
    }
}
