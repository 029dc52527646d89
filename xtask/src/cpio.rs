//! Writes cpio archives in the "newc" format (Linux's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

/// An archive in the making.
#[derive(Default)]
pub struct Archive(Vec<u8>);

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.member(name, DIRECTORY, (0, 0), &[]);
    }

    /// Adds an executable file.
    pub fn file(&mut self, name: &str, contents: &[u8]) {
        self.member(name, FILE, (0, 0), contents);
    }

    /// Adds the node of the console device, which a kernel opens before it mounts
    /// anything.
    pub fn console(&mut self, name: &str) {
        self.member(name, CHARACTER_DEVICE, (5, 1), &[]);
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.member("TRAILER!!!", 0, (0, 0), &[]);
        self.0
    }

    fn member(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let (links, owner, time, checksum) = (1, 0, 0, 0);
        let bytes = contents.len() as u32;
        let name_bytes = name.len() as u32 + 1;
        // Each field is eight hexadecimal digits; the inode is not used.
        self.0.extend_from_slice(b"070701");
        for field in [
            0, mode, owner, owner, links, time, bytes, 0, 0, device.0, device.1, name_bytes,
            checksum,
        ] {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_start_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.file("a", b"12345");
        archive.directory("bc");
        let bytes = archive.finish();
        // Header and name take 112 bytes, the contents 8.
        assert_eq!(&bytes[110..117], b"a\x0012345");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(&bytes[54..62], b"00000005");
        assert!(bytes.len().is_multiple_of(4));
    }
}
