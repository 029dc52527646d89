//! The register file: what an access reads and changes, and nothing else.
//!
//! Virtio 1.2, section 4.2.2 "MMIO Device Register Layout" (version 2), and
//! section 2.1 "Device Status Field". Registers are 32 bits wide; the
//! configuration space takes any aligned access up to 8 bytes.

use super::config::{BYPASS, Config};
use super::features::Features;
use super::ring::{MAX_SIZE, Ring};
use bitflags::bitflags;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const SHARED_MEMORY_LENGTH: u64 = 0x0b0;
const SHARED_MEMORY_BASE: u64 = 0x0b8;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// "virt".
const MAGIC_VALUE: u32 = 0x7472_6976;
/// An IOMMU (section 5.13.1).
const IOMMU: u32 = 23;
/// "STRL".
const VENDOR: u32 = u32::from_le_bytes(*b"STRL");

/// The queue for requests (5.13.2).
pub(super) const REQUESTS: usize = 0;
/// The queue for events.
pub(super) const EVENTS: usize = 1;
/// How many queues there are.
pub(super) const QUEUES: usize = 2;

bitflags! {
    /// Section 2.1.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct DeviceStatus: u32 {
        /// The driver has noticed the device.
        const ACKNOWLEDGE = 1;
        /// It knows how to drive it.
        const DRIVER = 2;
        /// It is ready: only now are requests taken.
        const DRIVER_OK = 4;
        /// Both agree on the features.
        const FEATURES_OK = 8;
        /// A queue is broken; nothing more is done before a reset.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

impl DeviceStatus {
    /// What a driver sets.
    const WRITABLE: Self = Self::all().difference(Self::NEEDS_RESET);
}

bitflags! {
    /// Why there is an interrupt.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Interrupt: u32 {
        /// A buffer was given back.
        const USED = 1;
        /// Status or configuration have changed.
        const CONFIG = 2;
    }
}

/// One queue's registers, and how far it was worked off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Queue {
    pub(super) ring: Ring,
    /// Only a queue with a valid ring is ever ready.
    pub(super) is_ready: bool,
}

/// The registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Registers {
    /// Bits of IOVA; fixed.
    pub(super) width: u8,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    /// What the driver accepted, valid or not.
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) queues: [Queue; QUEUES],
    pub(super) interrupt: Interrupt,
    pub(super) status: DeviceStatus,
    /// `bypass` of the configuration, as it is in force.
    pub(super) bypass: bool,
    /// What the driver wrote there last.
    pub(super) bypass_wanted: bool,
    /// The driver has reset the device, and its endpoints are not detached yet. A
    /// driver that does not wait for that may set the registers up anew meanwhile.
    pub(super) reset_wanted: bool,
    /// There may be requests.
    pub(super) is_notified: bool,
}

impl Registers {
    /// As after power on.
    pub(super) fn new(width: u8) -> Self {
        Self {
            width,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: [Queue::default(); QUEUES],
            interrupt: Interrupt::empty(),
            status: DeviceStatus::empty(),
            bypass: true,
            bypass_wanted: true,
            reset_wanted: false,
            is_notified: false,
        }
    }

    /// As after a reset by the driver. `bypass` stays, as the specification wants
    /// it.
    fn reset(&mut self) {
        *self = Self {
            bypass: self.bypass,
            bypass_wanted: self.bypass_wanted,
            reset_wanted: true,
            ..Self::new(self.width)
        };
    }

    /// What was negotiated.
    pub(super) fn features(&self) -> Features {
        Features::from_bits_truncate(self.driver_features)
    }

    /// Whether the driver may have requests carried out, and be told of events.
    pub(super) fn is_live(&self) -> bool {
        let needed = DeviceStatus::DRIVER_OK | DeviceStatus::FEATURES_OK;
        self.status.contains(needed)
            && !self.status.contains(DeviceStatus::NEEDS_RESET)
            && !self.reset_wanted
    }

    /// Whether a driver can have brought the status about.
    pub(super) fn is_possible(&self) -> bool {
        let negotiated = self.status.contains(DeviceStatus::FEATURES_OK);
        let is_acceptable = Features::are_acceptable(self.driver_features);
        (!negotiated || is_acceptable)
            && (negotiated || !self.status.contains(DeviceStatus::DRIVER_OK))
    }

    /// A queue broke the specification.
    pub(super) fn demand_reset(&mut self) {
        self.status.insert(DeviceStatus::NEEDS_RESET);
        self.interrupt.insert(Interrupt::CONFIG);
    }

    /// An access of `width` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, width: u8) -> u64 {
        if !is_allowed(offset, width) {
            return u64::MAX;
        }
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let config = Config::new(self.width, self.bypass);
            // Past the configuration there is nothing either way.
            return config.read(usize::try_from(offset).unwrap_or(usize::MAX), width);
        }
        u64::from(self.read_register(offset))
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queue();
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => 2,
            DEVICE_ID => IOMMU,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(Features::all().bits(), self.device_features_select),
            QUEUE_SIZE_MAX if queue.is_some() => MAX_SIZE.into(),
            QUEUE_READY => u32::from(queue.is_some_and(|queue| queue.is_ready)),
            INTERRUPT_STATUS => self.interrupt.bits(),
            // Not 0 before the reset is done.
            STATUS if self.reset_wanted => self.status.bits() | DeviceStatus::NEEDS_RESET.bits(),
            STATUS => self.status.bits(),
            // There is no shared memory.
            SHARED_MEMORY_LENGTH..QUEUE_RESET => u32::MAX,
            // The configuration changes by `bypass` alone.
            CONFIG_GENERATION => self.bypass.into(),
            _ => 0,
        }
    }

    /// An access of `width` bytes at `offset`.
    pub(super) fn write(&mut self, offset: u64, width: u8, value: u64) {
        if !is_allowed(offset, width) {
            return;
        }
        match offset.checked_sub(CONFIG) {
            Some(offset) => self.write_config(offset, width, value),
            None => self.write_register(offset, value as u32),
        }
    }

    /// Any other value than 0 or 1 is one that a driver must not write.
    fn write_config(&mut self, offset: u64, width: u8, value: u64) {
        let is_bypass = offset == BYPASS as u64 && width == 1;
        if is_bypass && value <= 1 && self.features().contains(Features::BYPASS_CONFIG) {
            self.bypass_wanted = value == 1;
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SELECT => self.device_features_select = value,
            DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            DRIVER_FEATURES if !self.status.contains(DeviceStatus::FEATURES_OK) => {
                match self.driver_features_select {
                    0 => set_low(&mut self.driver_features, value),
                    1 => set_high(&mut self.driver_features, value),
                    _ => {}
                }
            }
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_NOTIFY if value == REQUESTS as u32 => self.is_notified = true,
            INTERRUPT_ACKNOWLEDGE => self.interrupt.remove(Interrupt::from_bits_truncate(value)),
            STATUS => self.write_status(value),
            _ => {
                if let Some(queue) = self.selected_queue() {
                    queue.write(offset, value);
                }
            }
        }
    }

    /// FEATURES_OK stays clear when the features are not acceptable, and DRIVER_OK
    /// without it.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut set = DeviceStatus::from_bits_truncate(value) & DeviceStatus::WRITABLE;
        if !Features::are_acceptable(self.driver_features) {
            set.remove(DeviceStatus::FEATURES_OK);
        }
        if !(self.status | set).contains(DeviceStatus::FEATURES_OK) {
            set.remove(DeviceStatus::DRIVER_OK);
        }
        // A driver clears bits by a reset only.
        self.status.insert(set);
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize)
    }

    fn selected_queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_select as usize)
    }
}

impl Queue {
    /// While it is ready nothing but that can be changed.
    fn write(&mut self, offset: u64, value: u32) {
        let ring = &mut self.ring;
        match offset {
            QUEUE_READY => {
                let begins = value & 1 != 0 && !self.is_ready;
                if begins {
                    (ring.taken, ring.used) = (0, 0);
                }
                self.is_ready = value & 1 != 0 && ring.is_valid();
            }
            _ if self.is_ready => {}
            QUEUE_SIZE => {
                if let Ok(size) = u16::try_from(value)
                    && size <= MAX_SIZE
                {
                    ring.size = size;
                }
            }
            _ => {
                let address = match offset & !7 {
                    QUEUE_DESCRIPTORS => &mut ring.descriptors,
                    QUEUE_DRIVER => &mut ring.driver,
                    QUEUE_DEVICE => &mut ring.device,
                    _ => return,
                };
                if offset.is_multiple_of(8) {
                    set_low(address, value);
                } else {
                    set_high(address, value);
                }
            }
        }
    }
}

/// QueueReset, which is not offered; the registers of shared memory end there.
const QUEUE_RESET: u64 = 0x0c0;
const _: () = assert!(SHARED_MEMORY_BASE + 8 == QUEUE_RESET);

fn is_allowed(offset: u64, width: u8) -> bool {
    let aligned = matches!(width, 1 | 2 | 4 | 8) && offset.is_multiple_of(u64::from(width));
    aligned && (width == 4 || offset >= CONFIG)
}

/// The low half for 0, the high one for 1, and zero for any other.
const fn half(word: u64, select: u32) -> u32 {
    match select {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

fn set_low(word: &mut u64, half: u32) {
    *word = *word >> 32 << 32 | u64::from(half);
}

fn set_high(word: &mut u64, half: u32) {
    *word = u64::from(*word as u32) | u64::from(half) << 32;
}
