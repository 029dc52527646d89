//! A received record: its payload as the view that fits its kind.

use super::{
    AbortReason, Audit, Hello, Kind, Pages, Refusal, RoundEnd, Section, StreamError, ZeroPages,
};

/// One record, checked for everything that can be told from itself alone.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "the variants are documented at `Kind`")]
pub enum Record<'a> {
    Hello(Hello<'a>),
    Pages(Pages<'a>),
    ZeroPages(ZeroPages<'a>),
    RoundEnd(RoundEnd),
    Audit(Audit<'a>),
    Section(Section<'a>),
    Final,
    Go,
    Accept,
    Refuse(Refusal),
    Ready,
    Running,
    Abort(AbortReason),
}

impl<'a> Record<'a> {
    pub(crate) fn new_checked(kind: Kind, payload: &'a [u8]) -> Result<Self, StreamError> {
        let empty = |record| match payload {
            [] => Ok(record),
            _ => Err(StreamError::Length {
                kind: kind as u16,
                length: payload.len() as u32,
            }),
        };
        match kind {
            Kind::Hello => Hello::new_checked(payload).map(Self::Hello),
            Kind::Pages => Pages::new_checked(payload).map(Self::Pages),
            Kind::ZeroPages => ZeroPages::new_checked(payload).map(Self::ZeroPages),
            Kind::RoundEnd => RoundEnd::read(payload).map(Self::RoundEnd),
            Kind::Audit => Audit::new_checked(payload).map(Self::Audit),
            Kind::Section => Section::new_checked(payload).map(Self::Section),
            Kind::Final => empty(Self::Final),
            Kind::Go => empty(Self::Go),
            Kind::Accept => empty(Self::Accept),
            Kind::Refuse => Refusal::read(payload).map(Self::Refuse),
            Kind::Ready => empty(Self::Ready),
            Kind::Running => empty(Self::Running),
            Kind::Abort => AbortReason::read(payload).map(Self::Abort),
        }
    }

    /// What kind of record it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Pages(_) => Kind::Pages,
            Self::ZeroPages(_) => Kind::ZeroPages,
            Self::RoundEnd(_) => Kind::RoundEnd,
            Self::Audit(_) => Kind::Audit,
            Self::Section(_) => Kind::Section,
            Self::Final => Kind::Final,
            Self::Go => Kind::Go,
            Self::Accept => Kind::Accept,
            Self::Refuse(_) => Kind::Refuse,
            Self::Ready => Kind::Ready,
            Self::Running => Kind::Running,
            Self::Abort(_) => Kind::Abort,
        }
    }
}
