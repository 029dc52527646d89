use super::*;
use std::cell::RefCell;

/// One function at 00:03.0 with 64 registers; everything else is empty.
struct Bus {
    registers: RefCell<[u32; 64]>,
    /// The size mask of the base address register 0.
    bar_mask: u32,
}

const AT: (u8, u8) = (0, 3);

impl Bus {
    fn with_edu() -> Self {
        let mut registers = [0; 64];
        registers[0] = 0x11e8_1234;
        registers[1] = 0x0010_0000; // status: has a capability list
        registers[4] = 0xfea0_0000;
        registers[13] = 0x40;
        registers[16] = 0x0080_0005; // MSI, 64-bit, last of the list
        Self {
            registers: RefCell::new(registers),
            bar_mask: 0xfff0_0000,
        }
    }

    fn register(&self, offset: usize) -> u32 {
        self.registers.borrow()[offset / 4]
    }
}

impl ConfigRegionAccess for Bus {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        if (address.bus(), address.device()) != AT || address.function() != 0 {
            return u32::MAX;
        }
        self.register(usize::from(offset))
    }

    unsafe fn write(&self, _: PciAddress, offset: u16, value: u32) {
        let value = if offset == 0x10 {
            value & self.bar_mask
        } else {
            value
        };
        self.registers.borrow_mut()[usize::from(offset) / 4] = value;
    }
}

#[test]
fn a_device_is_found_by_id_with_its_requester_id() {
    let bus = Bus::with_edu();
    let edu = Function::find(&bus, EDU).unwrap();
    assert_eq!(edu.requester_id(), 3 << 3);
    assert_eq!(edu.to_string(), "00:03.0 [1234:11e8]");
    assert_eq!(
        Function::find(&bus, IVSHMEM),
        Err(PciError::NoDevice(IVSHMEM))
    );
}

#[test]
fn a_bar_has_place_and_size_and_is_left_as_it_was() {
    let bus = Bus::with_edu();
    let edu = Function::find(&bus, EDU).unwrap();
    let range = PhysRange::new(0xfea0_0000, 1 << 20).unwrap();
    assert_eq!(edu.bar(&bus, 0), Ok(range));
    assert_eq!(bus.register(0x10), 0xfea0_0000);
    assert_eq!(edu.bar(&bus, 1), Err(PciError::NoBar(EDU, 1)));
    bus.registers.borrow_mut()[4] = 0;
    assert_eq!(edu.bar(&bus, 0), Err(PciError::NoBar(EDU, 0)));
}

#[test]
fn enabling_sets_memory_and_dma_and_silences_the_line() {
    let bus = Bus::with_edu();
    let edu = Function::find(&bus, EDU).unwrap();
    edu.enable(&bus, true);
    assert_eq!(bus.register(4) & 0xffff, 1 << 10 | 1 << 2 | 1 << 1);
    edu.enable(&bus, false);
    assert_eq!(bus.register(4) & 0xffff, 1 << 10 | 1 << 1);
}

#[test]
fn a_message_goes_to_the_apic_with_the_vector() {
    let bus = Bus::with_edu();
    let edu = Function::find(&bus, EDU).unwrap();
    let message = Msi::fixed(5, 0x41).unwrap();
    edu.enable_msi(&bus, message).unwrap();
    assert_eq!(bus.register(0x44), 0xfee0_5000);
    assert_eq!(bus.register(0x48), 0);
    assert_eq!(bus.register(0x4c) & 0xffff, 0x41);
    assert_eq!(bus.register(0x40) >> 16 & 1, 1);
    edu.disable_msi(&bus).unwrap();
    assert_eq!(bus.register(0x40) >> 16 & 1, 0);
}

#[test]
fn a_capability_list_without_end_or_msi_is_no_msi() {
    let bus = Bus::with_edu();
    // A vendor capability that is its own successor.
    bus.registers.borrow_mut()[16] = 0x0000_4009;
    let edu = Function::find(&bus, EDU).unwrap();
    let message = Msi::fixed(0, 0x41).unwrap();
    assert_eq!(edu.enable_msi(&bus, message), Err(PciError::NoMsi(EDU)));
}

/// An NVMe controller that has MSI-X in BAR 0 and can reset itself.
fn nvme() -> Bus {
    let bus = Bus::with_edu();
    {
        let mut registers = bus.registers.borrow_mut();
        registers[2] = 0x0108_0202;
        registers[16] = 0x0040_5011; // MSI-X with 65 vectors, then 50h
        registers[17] = 0x2000;
        registers[18] = 0x3000;
        registers[20] = 0x0002_0010; // PCI Express, the last
        registers[21] = 1 << 28;
    }
    bus
}

#[test]
fn a_controller_is_found_by_class_with_its_vectors() {
    let bus = nvme();
    let function = Function::of_class(&bus, NVME).unwrap();
    let place = MsixPlace {
        vectors: 65,
        table: 0x2000,
        pending: 0x3000,
    };
    assert_eq!(function.msix_place(&bus), Ok(place));
    function.enable_msix(&bus, true).unwrap();
    assert_eq!(bus.register(0x40) >> 31, 1);
    assert_eq!(Function::of_class(&Bus::with_edu(), NVME), None);
}

#[test]
fn a_table_in_another_bar_is_refused() {
    let bus = nvme();
    bus.registers.borrow_mut()[17] = 0x2004;
    let function = Function::of_class(&bus, NVME).unwrap();
    assert!(matches!(
        function.msix_place(&bus),
        Err(PciError::NoMsix(_))
    ));
}

#[test]
fn a_reset_keeps_the_bars_and_ends_with_dma_off() {
    let bus = nvme();
    let function = Function::of_class(&bus, NVME).unwrap();
    function.enable(&bus, true);
    let mut waited = 0;
    let mut wait = |us| {
        // The device forgets its registers while it is reset.
        assert_eq!(bus.register(0x58) & 1 << 15, 1 << 15);
        bus.registers.borrow_mut()[4] = 0;
        waited += us;
    };
    assert!(function.reset(&bus, &mut wait));
    assert!(waited >= 100_000);
    assert_eq!(bus.register(0x10), 0xfea0_0000);
    assert_eq!(bus.register(4) & 0xffff, 1 << 10 | 1 << 1);

    bus.registers.borrow_mut()[21] = 0;
    assert!(!function.reset(&bus, &mut |_| panic!("nothing to wait for")));
}
