//! What APICs are sent: messages of devices and commands of other CPUs, and whom
//! they are for.
//!
//! AMD64 Architecture Programmer's Manual volume 2, sections 16.5 (interprocessor
//! interrupts, figure 16-18) and 16.12 (x2APIC); Intel SDM volume 3, section 11.11
//! (format of a message-signalled interrupt).

/// A message signalled interrupt: what the function writes and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Where to; an interrupt if it is FEEx_xxxxh.
    pub address: u64,
    /// What: vector and delivery mode.
    pub data: u32,
}

impl Msi {
    /// The message that raises `vector`, edge triggered, at the local APIC `apic_id`,
    /// if nobody remaps it on its way.
    ///
    /// # Errors
    /// The id needs more than the address's 8 bits.
    pub fn fixed(apic_id: u32, vector: u8) -> Result<Self, ApicIdTooLarge> {
        let apic_id = u8::try_from(apic_id).map_err(|_| ApicIdTooLarge(apic_id))?;
        Ok(Self {
            address: 0xfee0_0000 | u64::from(apic_id) << 12,
            data: vector.into(),
        })
    }
}

/// A message signalled interrupt on its way from a device to the CPUs, where an IOMMU
/// may have its say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The requester id of the device: bus, device and function.
    pub source: u16,
    /// What it sent.
    pub msi: Msi,
}

/// A message cannot name this local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("local APIC id {0:#x} is beyond the 8 bits of a message's address")]
pub struct ApicIdTooLarge(pub u32);

/// Which CPUs something is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The one with this id.
    Physical(u32),
    /// Those whose logical id matches.
    Logical(u32),
    /// The sender.
    Itself,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// What is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// An interrupt with this vector to everyone who is addressed.
    Fixed(u8),
    /// An interrupt with this vector to one of those who are addressed.
    LowestPriority(u8),
    /// Reset, and wait for a start-up.
    Init,
    /// Start at this 4 KiB page.
    Startup(u8),
    /// A non-maskable interrupt.
    Nmi,
}

impl Delivery {
    /// What a device's delivery mode, of 3 bits, means; `None` for one that no device
    /// here has (SMI, INIT, ExtINT).
    pub const fn of_device(mode: u8, vector: u8) -> Option<Self> {
        match mode {
            0 => Some(Self::Fixed(vector)),
            1 => Some(Self::LowestPriority(vector)),
            4 => Some(Self::Nmi),
            _ => None,
        }
    }
}

/// What a CPU or a device sends to APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// To whom.
    pub to: Destination,
    /// What.
    pub delivery: Delivery,
}

impl Message {
    /// What a message signalled interrupt asks for if nobody remaps it; `None` if it is
    /// not one, or of a kind that no device here has.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let id = (msi.address >> 12) as u8;
        Some(Self {
            to: match (id, msi.address & 1 << 2 != 0) {
                (0xff, _) => Destination::All,
                (id, true) => Destination::Logical(id.into()),
                (id, false) => Destination::Physical(id.into()),
            },
            delivery: Delivery::of_device((msi.data >> 8 & 7) as u8, msi.data as u8)?,
        })
    }

    /// What the interrupt command register asks for, in its x2APIC form; `None` if it
    /// is of a kind that does nothing here: an SMI, or the deassertion of INIT.
    pub(super) fn from_command(icr: u64) -> Option<Self> {
        const ASSERT: u64 = 1 << 14;
        let vector = icr as u8;
        let delivery = match icr >> 8 & 7 {
            0 => Delivery::Fixed(vector),
            1 => Delivery::LowestPriority(vector),
            4 => Delivery::Nmi,
            5 if icr & ASSERT != 0 => Delivery::Init,
            6 => Delivery::Startup(vector),
            _ => return None,
        };
        let id = (icr >> 32) as u32;
        let to = match (icr >> 18 & 3, icr & 1 << 11 != 0) {
            (1, _) => Destination::Itself,
            (2, _) => Destination::All,
            (3, _) => Destination::Others,
            _ if id == u32::MAX => Destination::All,
            (_, true) => Destination::Logical(id),
            (_, false) => Destination::Physical(id),
        };
        Some(Self { to, delivery })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_message_reaches_the_apic_it_names_unless_its_id_is_too_large() {
        let msi = Msi::fixed(5, 0x41).unwrap();
        let message = Message {
            to: Destination::Physical(5),
            delivery: Delivery::Fixed(0x41),
        };
        assert_eq!(Message::from_msi(msi), Some(message));
        assert_eq!(Msi::fixed(256, 0x41), Err(ApicIdTooLarge(256)));
    }
}
