//! Time, as the layers above see it.

/// A monotonic clock. It never goes backwards and starts anywhere.
pub trait Clock {
    /// Microseconds since an arbitrary origin.
    fn now_us(&self) -> u64;
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now_us(&self) -> u64 {
        (**self).now_us()
    }
}
