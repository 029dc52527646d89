//! Which devices may have a TLB of their own. Decided here, nowhere else.
//!
//! PCI Express calls it Address Translation Services (ATS). A device with ATS on asks
//! the remapping unit for translations, keeps them, and sends what it does by them as
//! *translated* requests. The unit lets these pass to whatever address they name: it
//! checks that the device may send such requests, and no more. So nothing but its own
//! good conduct confines the device.
//!
//! Hence no device has one by default. Its requests are then translated one by one, and
//! the unit refuses translation requests and translated ones. A device gets one only if
//! it has the capability, if the unit knows how to tell it to forget, *and* if whoever
//! builds the machine vouches for it ([`Trust`]).
//!
//! # What an invalidation then is
//! The unit's own translations first, the device's after: a device that forgets first
//! could be told the old translation anew. Both before the one wait, which covers the
//! device's answer, and thereby every write that it sent by what it kept
//! (`tests/explorer` has this, and what goes wrong otherwise). A device that does not
//! answer may go on writing: that is [`UnitError::DeviceTlb`](crate::unit::UnitError),
//! after which nothing that was mapped is ever released.

/// What a device says of its ATS: the register at offset 4 of the extended capability
/// (PCI Express 5.0, 10.5.1.2 "ATS Capability Register").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AtsCapability {
    /// Invalidate Queue Depth, bits 4:0: how many invalidations the device takes before
    /// it has answered the first, from 1 to 32; the field's 0 is 32.
    pub queue_depth: u8,
}

impl AtsCapability {
    /// The id of the extended capability.
    pub const ID: u16 = 0x000f;

    /// Reads the register.
    pub const fn decode(raw: u16) -> Self {
        Self {
            queue_depth: match raw as u8 & 0x1f {
                0 => 32,
                depth => depth,
            },
        }
    }
}

/// Whether somebody vouches that a device sends translated requests only by
/// translations that it was given and that were not taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trust {
    /// Nobody does.
    #[default]
    Nobody,
    /// Whoever builds the machine does.
    Vouched,
}

/// Why a device has no TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoDeviceTlb {
    /// As is the default.
    #[error("nobody vouches for the device's translated requests")]
    NotTrusted,
    /// It could not have one.
    #[error("the device has no ATS capability")]
    NoCapability,
    /// It could not be told to forget, or it could not be told whether it did.
    #[error("the remapping unit does not know of device TLBs")]
    Unit,
    /// It is attached somewhere. Its entry says what it may send, and is not changed
    /// while in use.
    #[error("the device is in use already")]
    InUse,
    /// There are too many devices.
    #[error("too many devices have a TLB")]
    TooMany,
}

/// That a device may have a TLB: there is none but by [`DeviceTlb::decide`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTlb {
    queue_depth: u8,
}

impl DeviceTlb {
    /// Whether a device may have one, by what it says and what is said of it.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn decide(ats: Option<AtsCapability>, trust: Trust) -> Result<Self, NoDeviceTlb> {
        if trust != Trust::Vouched {
            return Err(NoDeviceTlb::NotTrusted);
        }
        let AtsCapability { queue_depth } = ats.ok_or(NoDeviceTlb::NoCapability)?;
        Ok(Self { queue_depth })
    }

    /// How many invalidations the device takes before it has answered the first, 1 to
    /// 32.
    pub const fn queue_depth(self) -> u8 {
        self.queue_depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_no_tlb_unless_it_can_and_somebody_vouches_for_it() {
        let ats = Some(AtsCapability::decode(0x25));
        let decide = DeviceTlb::decide;
        assert_eq!(decide(ats, Trust::default()), Err(NoDeviceTlb::NotTrusted));
        let none = Err(NoDeviceTlb::NoCapability);
        assert_eq!(decide(None, Trust::Vouched), none);
        let tlb = decide(ats, Trust::Vouched).unwrap();
        assert_eq!(tlb.queue_depth(), 5);
    }

    #[test]
    fn a_depth_of_zero_is_thirty_two() {
        assert_eq!(AtsCapability::decode(0x20).queue_depth, 32);
        assert_eq!(AtsCapability::decode(0x1f).queue_depth, 31);
    }
}
