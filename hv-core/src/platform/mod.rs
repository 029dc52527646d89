//! The virtual platform: everything a guest finds around its CPU and memory.
//!
//! | where | what |
//! | --- | --- |
//! | CPUID, MSRs | what a table offers; no other feature, and #GP ([`cpuid`], [`msr`]) |
//! | FEE0_0000h, MSRs 800h to 8FFh | a local APIC with its timer for each CPU ([`apic`], [`processors`]) |
//! | FEC0_0000h | an I/O APIC ([`ioapic`]) |
//! | ports 40h to 43h, 61h | an 8254 to measure with ([`pit`]) |
//! | ports 3F8h to 3FFh | a 16550, at input 4 of the I/O APIC ([`uart`]) |
//! | port F4h | a write ends the guest with that status |
//! | ports 70h, 71h | a real-time clock ([`rtc`]) |
//! | ports 604h, 605h, CF9h, 64h | turning the machine off, and resetting it ([`power`]) |
//! | port 608h | ACPI's power management timer |
//! | ports CF8h to CFFh, C000_0000h | PCI configuration, bus 0 ([`pci`]) |
//! | in BAR 0 of a function | its MSI-X table ([`pci::msix`]) |
//!
//! There are no 8259s and no keyboard controller, and ACPI says so. Ports
//! and addresses that are not there read as all ones, and writes to them are
//! dropped, as on a real machine. All clocks follow one time line ([`time`]).

pub mod apic;
pub mod cpuid;
pub mod ioapic;
mod memory;
pub mod msr;
pub mod pci;
pub mod pit;
mod policy;
pub mod power;
pub mod processors;
pub mod rtc;
pub mod time;
pub mod uart;

use crate::vcpu::IoAccess;
use apic::{Message, Msi, Request};
use cpuid::{CpuidState, HostCpuid};
use heapless::Deque;
use ioapic::IoApic;
use msr::Refused;
use pci::PciBus;
use pit::Pit;
pub use power::GuestExit;
use processors::Processors;
use rtc::Rtc;
use time::{Time, Timeline};
use uart::Uart;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The port whose write ends the guest.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// ACPI's power management timer, 32 bits wide.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Its rate (ACPI Specification 6.5, section 4.8.2.1).
const PM_TIMER_HZ: u32 = 3_579_545;
/// The input of the I/O APIC that the serial port is wired to.
pub const UART_PIN: usize = 4;
/// The input for an IOMMU with an interrupt line.
pub const IOMMU_PIN: u8 = 5;

/// What a write to a port asks of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoEffect {
    /// Nothing.
    None,
    /// The guest ended by itself.
    Exit(GuestExit),
    /// A passthrough function's command register, BAR 0, MSI or MSI-X changed.
    PciChanged,
}

/// How many messages of devices can be on their way: one for each vector that a write
/// unmasks, and those of the I/O APIC.
const MAX_REQUESTS: usize = pci::MAX_FUNCTIONS * pci::MAX_VECTORS + 8;

/// The devices of one guest.
pub struct Platform {
    /// What each CPU has of it.
    pub cpus: Processors,
    /// The I/O APIC.
    ioapic: IoApic,
    /// The interval timer.
    pit: Pit,
    /// The serial port.
    uart: Uart,
    /// The real-time clock.
    rtc: Rtc,
    /// The PCI bus.
    pub pci: PciBus,
    /// The guest's time.
    pub timeline: Timeline,
    /// Where CPUID values come from.
    pub host_cpuid: HostCpuid,
    /// What devices sent and nobody has taken.
    requests: Deque<Request, MAX_REQUESTS>,
}

/// The state of all devices but those of the CPUs. The layout is fixed: these bytes
/// migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PlatformState {
    /// The I/O APIC.
    pub ioapic: ioapic::IoApicState,
    /// The interval timer.
    pub pit: pit::PitState,
    /// The PCI bus.
    pub pci: pci::PciState,
    /// The serial port.
    pub uart: uart::UartState,
    /// The real-time clock.
    pub rtc: rtc::RtcState,
    /// The guest's time.
    pub timeline: time::TimelineState,
    /// What it knows of its CPUs.
    pub cpuid: CpuidState,
}

/// Why device state from outside is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlatformError {
    /// The local APIC, or what belongs to it, cannot be in that state.
    #[error("the local APIC's state is not one that this CPU's can have")]
    Apic,
    /// The I/O APIC cannot be in that state.
    #[error("the I/O APIC's state is not one it can have")]
    IoApic,
    /// The interval timer cannot be in that state.
    #[error("the interval timer's state is not one it can have")]
    Pit,
    /// The guest's time goes by a counter of another rate.
    #[error("the guest's time stamp counter has another rate than this machine's")]
    Timeline,
    /// The CPUs here are others than the guest knows.
    #[error(
        "the guest knows its CPUs by another answer to CPUID leaf {leaf:#x} than this machine gives"
    )]
    Cpuid {
        /// The first leaf that differs.
        leaf: u32,
    },
    /// The serial port cannot be in that state.
    #[error("the serial port's state is not one it can have")]
    Uart,
    /// The PCI functions here are not those of the state.
    #[error("the PCI functions of this machine do not match the state")]
    Pci,
}

impl Platform {
    /// A platform after reset with the PCI functions of `pci`, for `cpus` CPUs whose
    /// time stamp counters make `tsc_hz` counts a second. Its real-time clock starts
    /// at `start`, in seconds since 1970 UTC.
    pub fn new(host_cpuid: HostCpuid, pci: PciBus, tsc_hz: u64, cpus: usize, start: i64) -> Self {
        Self {
            cpus: Processors::new(cpus),
            ioapic: IoApic::default(),
            pit: Pit::default(),
            uart: Uart::default(),
            rtc: Rtc::new(start),
            pci,
            timeline: Timeline::new(tsc_hz),
            host_cpuid,
            requests: Deque::new(),
        }
    }

    /// Reads a port.
    pub fn read_port(&mut self, access: IoAccess, now: Time) -> u32 {
        let value = match access.port {
            pit::FIRST_PORT..=pit::LAST_PORT if access.width == 1 => {
                u32::from(self.pit.read(access.port, now))
            }
            pit::SPEAKER_PORT if access.width == 1 => u32::from(self.pit.read_speaker(now)),
            uart::FIRST_PORT..=uart::LAST_PORT if access.width == 1 => {
                let value = self.uart.read(access.port - uart::FIRST_PORT);
                self.wire_uart();
                u32::from(value)
            }
            rtc::INDEX_PORT..=rtc::DATA_PORT if access.width == 1 => {
                u32::from(self.rtc.read(access.port, now))
            }
            // Asleep never, and no reset under way.
            power::SLEEP_CONTROL_PORT | power::SLEEP_STATUS_PORT | power::RESET_PORT
                if access.width == 1 =>
            {
                0
            }
            PM_TIMER_PORT => now.clocks(PM_TIMER_HZ) as u32,
            pci::ADDRESS_PORT..=pci::LAST_PORT => self.pci.read_port(access.port, access.width),
            _ => u32::MAX,
        };
        value & width_mask(access.width)
    }

    /// Writes a port. A byte for the serial line goes to `console`.
    pub fn write_port(
        &mut self,
        access: IoAccess,
        value: u32,
        now: Time,
        console: &mut dyn FnMut(u8),
    ) -> IoEffect {
        let value = value & width_mask(access.width);
        if access.width == 1
            && let Some(exit) = power::write(access.port, value as u8)
        {
            return IoEffect::Exit(exit);
        }
        match access.port {
            DEBUG_EXIT_PORT => return IoEffect::Exit(GuestExit::Status(value)),
            rtc::INDEX_PORT..=rtc::DATA_PORT if access.width == 1 => {
                self.rtc.write(access.port, value as u8, now);
            }
            pit::FIRST_PORT..=pit::LAST_PORT if access.width == 1 => {
                self.pit.write(access.port, value as u8, now);
            }
            pit::SPEAKER_PORT if access.width == 1 => self.pit.write_speaker(value as u8),
            uart::FIRST_PORT..=uart::LAST_PORT if access.width == 1 => {
                let register = access.port - uart::FIRST_PORT;
                if let Some(byte) = self.uart.write(register, value as u8) {
                    console(byte);
                }
                self.wire_uart();
            }
            pci::ADDRESS_PORT..=pci::LAST_PORT => {
                let has_changed = self.pci.write_port(access.port, access.width, value);
                return self.after_pci_write(has_changed);
            }
            _ => {}
        }
        IoEffect::None
    }

    /// What is to be done after a write of configuration space.
    fn after_pci_write(&mut self, has_changed: bool) -> IoEffect {
        if !has_changed {
            return IoEffect::None;
        }
        self.deliver_due();
        IoEffect::PciChanged
    }

    /// A passthrough device signals one of its vectors: [`PciBus::signal`].
    pub fn signal(&mut self, function: usize, vector: usize) {
        let sent = self.pci.signal(function, vector);
        if let Some(request) = sent {
            self.send(request);
        }
    }

    /// Messages that a mask held back and that it holds back no more.
    fn deliver_due(&mut self) {
        while let Some(request) = self.pci.take_due() {
            self.send(request);
        }
    }

    /// The oldest message that a device sent and nobody has taken. Whoever takes it
    /// finds out what it asks for ([`Message::from_msi`], or an IOMMU's tables) and
    /// delivers that.
    pub fn take_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Whether there is one.
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// A device's interrupt reaches the CPUs.
    pub fn deliver(&mut self, message: Message) {
        self.cpus.send(message, None);
    }

    /// There is room: see [`MAX_REQUESTS`].
    fn send(&mut self, request: Request) {
        let _ = self.requests.push_back(request);
    }

    fn send_from_ioapic(&mut self, sent: Option<Msi>) {
        if let Some(msi) = sent {
            let source = ioapic::REQUESTER;
            self.send(Request { source, msi });
        }
    }

    /// Whether a byte that arrives over the serial line has room.
    pub fn can_receive(&self) -> bool {
        self.uart.can_receive()
    }

    /// A byte arrives over the serial line. Refused while the port is full.
    pub fn receive(&mut self, byte: u8) -> Result<(), Refused> {
        self.uart.receive(byte)?;
        self.wire_uart();
        Ok(())
    }

    /// The devices that act by themselves catch up with `now`.
    pub fn advance(&mut self, now: Time) {
        self.cpus.iter_mut().for_each(|cpu| cpu.apic.advance(now));
    }

    /// The serial port's interrupt reaches the I/O APIC.
    fn wire_uart(&mut self) {
        let is_high = self.uart.requests_interrupt();
        self.set_input(UART_PIN, is_high);
    }

    /// An input of the I/O APIC is high or low from now on; when it rises, that is an
    /// interrupt.
    pub fn set_input(&mut self, pin: usize, is_high: bool) {
        let sent = self.ioapic.set_input(pin, is_high);
        self.send_from_ioapic(sent);
    }

    /// The state of all devices.
    pub fn save(&self) -> PlatformState {
        PlatformState {
            ioapic: self.ioapic.save(),
            pit: self.pit.save(),
            pci: self.pci.save(),
            uart: self.uart.save(),
            rtc: self.rtc.save(),
            timeline: self.timeline.save(),
            cpuid: CpuidState::of(self.host_cpuid),
        }
    }

    /// Takes over a state that came from outside. On an error nothing changes.
    pub fn restore(&mut self, state: &PlatformState) -> Result<(), PlatformError> {
        if let Some(leaf) = CpuidState::of(self.host_cpuid).difference(&state.cpuid) {
            return Err(PlatformError::Cpuid { leaf });
        }
        let ioapic = IoApic::restored(&state.ioapic).ok_or(PlatformError::IoApic)?;
        let pit = Pit::restored(&state.pit).ok_or(PlatformError::Pit)?;
        let timeline = self
            .timeline
            .restored(&state.timeline)
            .ok_or(PlatformError::Timeline)?;
        let uart = Uart::restored(&state.uart).ok_or(PlatformError::Uart)?;
        if !self.pci.restore(&state.pci) {
            return Err(PlatformError::Pci);
        }
        (self.ioapic, self.pit) = (ioapic, pit);
        (self.uart, self.timeline) = (uart, timeline);
        self.rtc = Rtc::restored(&state.rtc);
        Ok(())
    }
}

fn width_mask(width: u8) -> u32 {
    match width {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
