//! The guest's files among the boot modules.
//!
//! A loader such as GRUB gives kernel and initramfs as two modules. QEMU's
//! `-initrd` gives one, so both may also come in one archive: cpio in the "newc"
//! format (Linux's `Documentation/driver-api/early-userspace/buffer-format.rst`)
//! with the members `kernel` and `initramfs`.

/// Bytes of a member's header.
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
/// The name of the member that ends an archive.
const END: &[u8] = b"TRAILER!!!";

/// The guest's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Modules<'a> {
    /// The kernel, or any other image of a guest.
    pub kernel: &'a [u8],
    /// The initramfs, empty if there is none.
    pub initramfs: &'a [u8],
}

/// Why the modules are of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModulesError {
    /// There is none.
    #[error("the guest's image is missing: give it as the first boot module")]
    Missing,
    /// The first module is an archive that is cut off or damaged.
    #[error("the first boot module is a damaged cpio archive")]
    Damaged,
    /// The first module is an archive without a member `kernel`.
    #[error("the first boot module is a cpio archive without a file named kernel")]
    NoKernel,
}

impl<'a> Modules<'a> {
    /// Finds the files among the first two boot modules.
    pub fn find(modules: [Option<&'a [u8]>; 2]) -> Result<Self, ModulesError> {
        let first = modules[0].ok_or(ModulesError::Missing)?;
        if !first.starts_with(MAGIC) {
            return Ok(Self {
                kernel: first,
                initramfs: modules[1].unwrap_or_default(),
            });
        }
        Ok(Self {
            kernel: member(first, b"kernel")?.ok_or(ModulesError::NoKernel)?,
            initramfs: member(first, b"initramfs")?.unwrap_or_default(),
        })
    }
}

/// The contents of the member `wanted`.
fn member<'a>(archive: &'a [u8], wanted: &[u8]) -> Result<Option<&'a [u8]>, ModulesError> {
    let mut at = 0;
    loop {
        let (name, contents, next) = entry(archive, at).ok_or(ModulesError::Damaged)?;
        match name {
            END => return Ok(None),
            _ if name == wanted => return Ok(Some(contents)),
            _ => at = next,
        }
    }
}

/// Name and contents of the member at `at`, and where the next one is. Name and
/// contents are each padded to four bytes.
fn entry(archive: &[u8], at: usize) -> Option<(&[u8], &[u8], usize)> {
    let header = archive.get(at..at.checked_add(HEADER)?)?;
    if !header.starts_with(MAGIC) {
        return None;
    }
    // Thirteen fields of eight hexadecimal digits follow the magic.
    let field = |index: usize| {
        let digits = header.get(6 + 8 * index..14 + 8 * index)?;
        let value = u32::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()?;
        usize::try_from(value).ok()
    };
    let (bytes, name_bytes) = (field(6)?, field(11)?);
    let name_at = at + HEADER;
    let name_end = name_at.checked_add(name_bytes)?;
    let contents_at = name_end.checked_next_multiple_of(4)?;
    let contents_end = contents_at.checked_add(bytes)?;
    let name = archive.get(name_at..name_end)?.strip_suffix(b"\0")?;
    let contents = archive.get(contents_at..contents_end)?;
    Some((name, contents, contents_end.checked_next_multiple_of(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, contents) in members.iter().chain(&[("TRAILER!!!", &b""[..])]) {
            let mut fields = [0; 13];
            (fields[6], fields[11]) = (contents.len(), name.len() + 1);
            archive.extend_from_slice(MAGIC);
            for field in fields {
                archive.extend_from_slice(format!("{field:08x}").as_bytes());
            }
            archive.extend_from_slice(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend_from_slice(contents);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    #[test]
    fn two_modules_are_taken_as_they_are() {
        let found = Modules::find([Some(b"elf"), Some(b"ram")]).unwrap();
        assert_eq!((found.kernel, found.initramfs), (&b"elf"[..], &b"ram"[..]));
        assert_eq!(Modules::find([None, None]), Err(ModulesError::Missing));
    }

    #[test]
    fn one_archive_holds_both() {
        let both = archive(&[("x", b"1"), ("kernel", b"12345"), ("initramfs", b"67")]);
        let found = Modules::find([Some(&both), None]).unwrap();
        assert_eq!((found.kernel, found.initramfs), (&b"12345"[..], &b"67"[..]));
        let none = archive(&[("initramfs", b"67")]);
        assert_eq!(
            Modules::find([Some(&none), None]),
            Err(ModulesError::NoKernel)
        );
    }

    #[test]
    fn an_archive_that_is_cut_off_anywhere_is_refused() {
        let both = archive(&[("initramfs", b"67"), ("kernel", b"12345")]);
        let kernel_end = both.len() - 127;
        for cut in MAGIC.len()..kernel_end {
            assert_eq!(
                Modules::find([Some(&both[..cut]), None]),
                Err(ModulesError::Damaged),
                "{cut}"
            );
        }
    }
}
