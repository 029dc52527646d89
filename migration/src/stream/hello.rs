//! `Hello`: what the destination must know before it says yes.

use super::StreamError;
use core::mem::size_of;
use heapless::Vec;
use hv_core::memory::MAX_SLOTS;
use hv_core::{Gfn, PAGE_SIZE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "STRDLINE" in ASCII, read as a little-endian word.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"STRDLINE");
/// The version of the format that this crate speaks.
pub const VERSION: u16 = 1;
/// How many sections of device and CPU state a guest may have.
pub const MAX_SECTIONS: usize = 16;
/// Guest frame numbers end here: 52-bit physical addresses.
const FRAME_LIMIT: u64 = 1 << 40;
/// Flag: digests of all pages will come before the sections.
const AUDIT: u16 = 1 << 0;

/// Names what a section holds; the machine gives the numbers their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SectionId(pub u16);

/// Which section, in which version of its layout, of which instance of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionInfo {
    /// What it holds.
    pub id: SectionId,
    /// The version of its layout.
    pub version: u16,
    /// Tells apart several of a kind, such as CPUs.
    pub instance: u16,
}

/// A run of guest frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRun {
    /// The first frame.
    pub gfn: Gfn,
    /// How many there are, at least 1.
    pub frames: u64,
}

/// The guest that is to come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Its memory: disjoint runs, at least one.
    pub memory: Vec<MemoryRun, MAX_SLOTS>,
    /// The sections that will come, in that order.
    pub sections: Vec<SectionInfo, MAX_SECTIONS>,
    /// Whether digests of all pages will come.
    pub audit: bool,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: U64,
    version: U16,
    flags: U16,
    slots: U16,
    sections: U16,
    /// Bytes a page.
    page_size: U32,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireRun {
    gfn: U64,
    frames: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireSection {
    id: U16,
    version: U16,
    instance: U16,
    reserved: U16,
}

impl Config {
    /// The number of guest frames.
    pub fn frames(&self) -> u64 {
        self.memory.iter().map(|run| run.frames).sum()
    }

    /// The place of a frame when all runs are put in a row, or `None` if the guest
    /// does not have it.
    pub(crate) fn index_of(&self, gfn: Gfn) -> Option<u64> {
        let mut before = 0;
        for run in &self.memory {
            if let Some(within) = gfn.number().checked_sub(run.gfn.number())
                && within < run.frames
            {
                return Some(before + within);
            }
            before += run.frames;
        }
        None
    }

    /// The frame at a place, the inverse of `index_of`.
    pub(crate) fn frame_at(&self, index: u64) -> Option<Gfn> {
        let mut within = index;
        for run in &self.memory {
            if within < run.frames {
                return Some(Gfn::new(run.gfn.number() + within));
            }
            within -= run.frames;
        }
        None
    }

    /// Whether the memory is what the documentation of the fields promises.
    pub(crate) fn is_sound(&self) -> bool {
        let end = |run: &MemoryRun| run.gfn.number().checked_add(run.frames);
        let in_range =
            |run: &MemoryRun| run.frames > 0 && end(run).is_some_and(|end| end <= FRAME_LIMIT);
        let disjoint = |(index, a): (usize, &MemoryRun)| {
            self.memory[..index].iter().all(|b| {
                end(a).is_some_and(|end| end <= b.gfn.number())
                    || end(b).is_some_and(|end| end <= a.gfn.number())
            })
        };
        !self.memory.is_empty()
            && self.memory.iter().all(in_range)
            && self.memory.iter().enumerate().all(disjoint)
    }

    /// Writes the payload and returns its length.
    pub(crate) fn write(&self, to: &mut [u8]) -> usize {
        let head = Head {
            magic: MAGIC.into(),
            version: VERSION.into(),
            flags: if self.audit { AUDIT } else { 0 }.into(),
            slots: (self.memory.len() as u16).into(),
            sections: (self.sections.len() as u16).into(),
            page_size: (PAGE_SIZE as u32).into(),
            reserved: 0.into(),
        };
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            to[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(head.as_bytes());
        for run in &self.memory {
            let run = WireRun {
                gfn: run.gfn.number().into(),
                frames: run.frames.into(),
            };
            put(run.as_bytes());
        }
        for section in &self.sections {
            let section = WireSection {
                id: section.id.0.into(),
                version: section.version.into(),
                instance: section.instance.into(),
                reserved: 0.into(),
            };
            put(section.as_bytes());
        }
        at
    }
}

/// A view of the payload of `Hello`, whose magic and version were found good.
#[derive(Clone, Copy, Debug)]
pub struct Hello<'a>(&'a [u8]);

impl<'a> Hello<'a> {
    /// Checks magic and version, before anything that depends on them.
    pub(crate) fn new_checked(payload: &'a [u8]) -> Result<Self, StreamError> {
        let (magic, rest) = U64::read_from_prefix(payload).map_err(|_| length(payload))?;
        if magic.get() != MAGIC {
            return Err(StreamError::BadMagic(magic.get()));
        }
        let (version, _) = U16::read_from_prefix(rest).map_err(|_| length(payload))?;
        if version.get() != VERSION {
            return Err(StreamError::Version(version.get()));
        }
        Ok(Self(payload))
    }

    /// The guest that is to come, checked.
    pub fn config(&self) -> Result<Config, StreamError> {
        let (head, rest) = Head::read_from_prefix(self.0).map_err(|_| length(self.0))?;
        if u64::from(head.page_size.get()) != PAGE_SIZE {
            return Err(StreamError::Field("page size"));
        }
        let slots = usize::from(head.slots.get());
        let sections = usize::from(head.sections.get());
        if rest.len() != slots * size_of::<WireRun>() + sections * size_of::<WireSection>() {
            return Err(length(self.0));
        }
        let (runs, rest) =
            <[WireRun]>::ref_from_prefix_with_elems(rest, slots).map_err(|_| length(self.0))?;
        let wire_sections = <[WireSection]>::ref_from_bytes(rest).map_err(|_| length(self.0))?;
        let mut config = Config {
            audit: head.flags.get() & AUDIT != 0,
            ..Config::default()
        };
        for run in runs {
            let run = MemoryRun {
                gfn: Gfn::new(run.gfn.get()),
                frames: run.frames.get(),
            };
            let pushed = config.memory.push(run);
            pushed.map_err(|_| StreamError::Field("number of memory slots"))?;
        }
        for section in wire_sections {
            let section = SectionInfo {
                id: SectionId(section.id.get()),
                version: section.version.get(),
                instance: section.instance.get(),
            };
            let pushed = config.sections.push(section);
            pushed.map_err(|_| StreamError::Field("number of sections"))?;
        }
        if !config.is_sound() {
            return Err(StreamError::Field("memory layout"));
        }
        Ok(config)
    }
}

fn length(payload: &[u8]) -> StreamError {
    StreamError::Length {
        kind: super::Kind::Hello as u16,
        length: payload.len() as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(runs: &[(u64, u64)]) -> Config {
        Config {
            memory: runs
                .iter()
                .map(|&(gfn, frames)| MemoryRun {
                    gfn: Gfn::new(gfn),
                    frames,
                })
                .collect(),
            sections: [SectionInfo {
                id: SectionId(7),
                version: 2,
                instance: 1,
            }]
            .into_iter()
            .collect(),
            audit: true,
        }
    }

    fn read(payload: &[u8]) -> Result<Config, StreamError> {
        Hello::new_checked(payload)?.config()
    }

    #[test]
    fn a_config_survives_the_wire_and_its_frames_are_numbered_in_a_row() {
        let config = config(&[(100, 4), (0, 10)]);
        let mut bytes = [0; 256];
        let length = config.write(&mut bytes);
        assert_eq!(read(&bytes[..length]).as_ref(), Ok(&config));
        for index in 0..14 {
            let gfn = config.frame_at(index).unwrap();
            assert_eq!(config.index_of(gfn), Some(index));
        }
        assert_eq!(config.frame_at(14), None);
        assert_eq!(config.index_of(Gfn::new(10)), None);
    }

    #[test]
    fn empty_overlapping_and_endless_memory_is_refused() {
        let bad: [&[(u64, u64)]; 5] = [
            &[],
            &[(0, 0)],
            &[(0, 10), (9, 1)],
            &[(u64::MAX, 1)],
            &[(1 << 40, 1)],
        ];
        for runs in bad {
            let mut bytes = [0; 256];
            let length = config(runs).write(&mut bytes);
            let expected = Err(StreamError::Field("memory layout"));
            assert_eq!(read(&bytes[..length]), expected, "{runs:?}");
        }
    }

    #[test]
    fn magic_then_version_then_length_are_checked() {
        let mut bytes = [0; 256];
        let length = config(&[(0, 1)]).write(&mut bytes);
        let with = |at: usize, value: u8| {
            let mut bytes = bytes;
            bytes[at] = value;
            read(&bytes[..length])
        };
        assert!(matches!(with(0, 0), Err(StreamError::BadMagic(_))));
        assert_eq!(with(8, 9), Err(StreamError::Version(9)));
        assert!(matches!(with(12, 200), Err(StreamError::Length { .. })));
        assert_eq!(with(17, 0x20), Err(StreamError::Field("page size")));
        for cut in 0..length {
            assert!(matches!(
                read(&bytes[..cut]),
                Err(StreamError::Length { .. })
            ));
        }
    }
}
