//! `Section`: the state of one device or CPU.

use super::{Kind, MAX_PAYLOAD, SectionId, SectionInfo, StreamError};
use core::mem::size_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    id: U16,
    version: U16,
    instance: U16,
    /// 1: goes on with the section of the record before; otherwise 0.
    continues: U16,
    /// Bytes of state, before the padding.
    length: U32,
    reserved2: U32,
}

/// The most bytes of state in one record of a section.
pub const MAX_SECTION_BYTES: usize = MAX_PAYLOAD - size_of::<Head>();

/// A view of a `Section` record.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Which section.
    pub info: SectionInfo,
    /// Whether it goes on with the section of the record before.
    pub continues: bool,
    /// Its state, or more of it, in a layout that `info` names.
    pub bytes: &'a [u8],
}

impl<'a> Section<'a> {
    pub(crate) fn new_checked(payload: &'a [u8]) -> Result<Self, StreamError> {
        let bad_length = StreamError::Length {
            kind: Kind::Section as u16,
            length: payload.len() as u32,
        };
        let (head, rest) = Head::ref_from_prefix(payload).map_err(|_| bad_length)?;
        let length = head.length.get() as usize;
        if length.checked_next_multiple_of(8) != Some(rest.len()) {
            return Err(bad_length);
        }
        let continues = match (head.continues.get(), length) {
            (0, _) => false,
            // Something has to come, or it could go on for ever.
            (1, 1..) => true,
            _ => return Err(StreamError::Field("continuation of a section")),
        };
        Ok(Self {
            info: SectionInfo {
                id: SectionId(head.id.get()),
                version: head.version.get(),
                instance: head.instance.get(),
            },
            continues,
            bytes: rest.get(..length).ok_or(bad_length)?,
        })
    }
}

/// Writes a record of a section, the first or one that `continues` it. `save` puts
/// state into the buffer it gets and returns its length. Returns the payload's
/// length, padded with zeros.
pub(crate) fn write_section<E>(
    info: SectionInfo,
    continues: bool,
    payload: &mut [u8],
    save: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    let (head, state) = payload.split_at_mut(size_of::<Head>());
    let length = save(state)?.min(state.len());
    let padded = length.next_multiple_of(8).min(state.len());
    state[length..padded].fill(0);
    let wire = Head {
        id: info.id.0.into(),
        version: info.version.into(),
        instance: info.instance.into(),
        continues: u16::from(continues).into(),
        length: (length as u32).into(),
        reserved2: 0.into(),
    };
    head.copy_from_slice(wire.as_bytes());
    Ok(size_of::<Head>() + padded)
}
