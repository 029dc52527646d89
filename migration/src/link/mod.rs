//! What carries the stream: a pair of byte pipes, one in each direction.

pub mod pipe;
pub mod ring;

pub use pipe::Pipe;
pub use ring::{Ring, Role};

/// Why a link is of no use any more. Both are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other side closed it, or it broke.
    #[error("the link is closed")]
    Closed,
    /// The other side wrote nonsense into the link's own bookkeeping.
    #[error("the link's control data is corrupt")]
    Corrupt,
}

/// A reliable, ordered, two-way byte link. No call blocks.
pub trait Link {
    /// Takes some of `bytes` and returns how many; 0 means that there is no room
    /// now. On an error none of these bytes will ever be delivered: the protocol's
    /// point of no return depends on it.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, LinkError>;

    /// Fills the front of `bytes` and returns how many arrived; 0 means nothing
    /// now. What arrived before the other side closed is delivered first.
    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError>;

    /// Tells the other side that nothing more will come. What was sent can still
    /// be received there.
    fn close(&mut self);
}

impl<L: Link + ?Sized> Link for &mut L {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        (**self).send(bytes)
    }
    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        (**self).receive(bytes)
    }
    fn close(&mut self) {
        (**self).close();
    }
}
