//! The ACPI tables of a guest: RSDP, XSDT, FADT, DSDT, MADT, MCFG, and what the image
//! adds.
//!
//! ACPI Specification 6.5: RSDP section 5.2.5.3, table header 5.2.6, XSDT 5.2.8,
//! FADT 5.2.9, MADT 5.2.12. PCI Firmware Specification 3.3, section 4.1.2: MCFG. The
//! platform is hardware-reduced (section 4.1): it has the power management timer and
//! no other fixed hardware, and is turned off by the sleep control register.
//!
//! The crate `acpi_tables` makes such tables too, on a heap, which there is none of
//! here; the tests compare with it.

use super::{BootError, aml};
use crate::Gpa;
use crate::memory::{GuestMemory, PhysMemory};
use crate::platform::processors::MAX_CPUS;
use crate::platform::{PM_TIMER_PORT, apic, ioapic, pci, power, rtc};
use heapless::Vec;

/// The most tables the image can add.
const MAX_EXTRA: usize = 6;
/// Bytes of a table header.
const HEADER: usize = 36;
/// Bytes of the longest table that is made here.
const MAX_TABLE: usize = 320;
/// Bytes of the longest MADT behind its header.
const MAX_MADT: usize = 8 + 8 * MAX_CPUS + 12;
/// Bytes of the FADT behind its header.
const FADT_BODY: usize = 276 - HEADER;

/// The local APICs' address; an enabled local APIC for each CPU, whose id is its
/// number (type 0); and one I/O APIC (type 1), whose interrupts start at 0.
fn madt_body(cpus: usize) -> Result<Vec<u8, MAX_MADT>, BootError> {
    let mut body = Vec::new();
    let mut put = |bytes: &[u8]| {
        body.extend_from_slice(bytes)
            .map_err(|_| BootError::AcpiTables)
    };
    put(&(apic::WINDOW as u32).to_le_bytes())?;
    // No 8259s.
    put(&[0; 4])?;
    for id in 0..cpus as u8 {
        // Type, length, processor, id, enabled.
        put(&[0, 8, id, id, 1, 0, 0, 0])?;
    }
    // Type, length, id, reserved, address, first interrupt.
    put(&[1, 12, ioapic::ID, 0])?;
    put(&(ioapic::WINDOW as u32).to_le_bytes())?;
    put(&[0; 4])?;
    Ok(body)
}

fn fadt_body(dsdt: Gpa) -> [u8; FADT_BODY] {
    // IAPC_BOOT_ARCH: no VGA; bits 0, 1 and 5 clear: of a PC nothing but the RTC.
    const BOOT_ARCH: u16 = 1 << 2;
    // TMR_VAL_EXT: a timer of 32 bits; RESET_REG_SUP; HW_REDUCED_ACPI.
    const FLAGS: u32 = 1 << 8 | 1 << 10 | 1 << 20;
    const MINOR: u8 = 5;

    let mut body = [0; FADT_BODY];
    let mut put = |at: usize, bytes: &[u8]| {
        body[at - HEADER..at - HEADER + bytes.len()].copy_from_slice(bytes);
    };
    put(76, &u32::from(PM_TIMER_PORT).to_le_bytes());
    put(91, &[4]);
    put(108, &[rtc::CENTURY]);
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FLAGS.to_le_bytes());
    put(116, &io_register(power::RESET_PORT, 8));
    put(128, &[power::RESET_VALUE]);
    put(131, &[MINOR]);
    put(140, &dsdt.raw().to_le_bytes());
    put(208, &io_register(PM_TIMER_PORT, 32));
    put(244, &io_register(power::SLEEP_CONTROL_PORT, 8));
    put(256, &io_register(power::SLEEP_STATUS_PORT, 8));
    body
}

/// A generic address (section 5.2.3.2) of a register of so many bits in I/O space, to
/// be accessed whole.
fn io_register(port: u16, bits: u8) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    let access = match bits {
        8 => 1,
        _ => 3,
    };
    [1, bits, 0, access, low, high, 0, 0, 0, 0, 0, 0]
}

/// The configuration space of bus 0 of segment 0.
fn mcfg_body() -> [u8; 24] {
    let mut body = [0; 24];
    body[8..16].copy_from_slice(&pci::WINDOW.raw().to_le_bytes());
    body
}

/// Writes the tables of a guest with `cpus` CPUs to `start..end` and returns the address of the RSDP.
pub(super) fn write<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    start: Gpa,
    end: Gpa,
    cpus: usize,
    extra: &[&[u8]],
) -> Result<Gpa, BootError> {
    let mut next = start;
    let mut place = |table: &[u8]| -> Result<Gpa, BootError> {
        let at = next;
        let bytes = (table.len() as u64).next_multiple_of(16);
        next = at.checked_add(bytes).ok_or(BootError::AcpiTables)?;
        if next > end {
            return Err(BootError::AcpiTables);
        }
        memory.write(at, table)?;
        Ok(at)
    };
    // The RSDP comes first, but is known last.
    let rsdp_at = place(&[0; 36])?;
    let dsdt = place(&table(*b"DSDT", 2, &aml::definition_block()?)?)?;
    let fadt = table(*b"FACP", 6, &fadt_body(dsdt))?;
    let madt = table(*b"APIC", 5, &madt_body(cpus)?)?;
    let mcfg = table(*b"MCFG", 1, &mcfg_body())?;
    let mut pointers = Vec::<u8, { 8 * (MAX_EXTRA + 3) }>::new();
    let own = [fadt.as_slice(), madt.as_slice(), mcfg.as_slice()];
    for bytes in own.into_iter().chain(extra.iter().copied()) {
        let at = place(bytes)?.raw().to_le_bytes();
        pointers
            .extend_from_slice(&at)
            .map_err(|_| BootError::AcpiTables)?;
    }
    let xsdt_at = place(&table(*b"XSDT", 1, &pointers)?)?;
    memory.write(rsdp_at, &rsdp(xsdt_at))?;
    Ok(rsdp_at)
}

/// A table with header and checksum.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Result<Vec<u8, MAX_TABLE>, BootError> {
    let mut table = Vec::new();
    let length = (HEADER + body.len()) as u32;
    let parts: [&[u8]; 9] = [
        &signature,
        &length.to_le_bytes(),
        &[revision, 0],
        b"STRAND",
        b"STRNDLNE",
        &1u32.to_le_bytes(),
        b"STRL",
        &1u32.to_le_bytes(),
        body,
    ];
    for part in parts {
        table
            .extend_from_slice(part)
            .map_err(|_| BootError::AcpiTables)?;
    }
    let sum = checksum(&table);
    if let Some(byte) = table.get_mut(9) {
        *byte = sum;
    }
    Ok(table)
}

/// The root pointer, revision 2, with both its checksums.
fn rsdp(xsdt: Gpa) -> [u8; 36] {
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"STRAND");
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&36u32.to_le_bytes());
    rsdp[24..32].copy_from_slice(&xsdt.raw().to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::tests::with_memory;
    use super::*;

    fn bytes_at<const N: usize>(memory: &GuestMemory<'_, impl PhysMemory>, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory.read(Gpa::new(at), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_sum_is_zero_and_every_table_is_listed() {
        with_memory(|memory| {
            let (start, end) = (Gpa::new(0xe_0000), Gpa::new(0xf_8000));
            let extra = table(*b"DMAR", 1, &[7; 12]).unwrap();
            let rsdp: [u8; 36] = bytes_at(
                memory,
                write(memory, start, end, 2, &[&extra]).unwrap().raw(),
            );
            assert_eq!(checksum(&rsdp[..20]), 0);
            assert_eq!(checksum(&rsdp), 0);
            let xsdt_at = u64::from_le_bytes(rsdp[24..32].try_into().unwrap());
            let xsdt: [u8; HEADER + 32] = bytes_at(memory, xsdt_at);
            assert_eq!(&xsdt[..4], b"XSDT");
            assert_eq!(checksum(&xsdt), 0);
            let pointer = |at: usize| u64::from_le_bytes(xsdt[at..at + 8].try_into().unwrap());
            let fadt: [u8; 276] = bytes_at(memory, pointer(HEADER));
            assert_eq!((&fadt[..4], checksum(&fadt)), (&b"FACP"[..], 0));
            let dsdt_at = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
            assert_eq!(&bytes_at::<4>(memory, dsdt_at), b"DSDT");
            let madt: [u8; HEADER + 36] = bytes_at(memory, pointer(HEADER + 8));
            assert_eq!((&madt[..4], checksum(&madt)), (&b"APIC"[..], 0));
            let mcfg: [u8; HEADER + 24] = bytes_at(memory, pointer(HEADER + 16));
            assert_eq!((&mcfg[..4], checksum(&mcfg)), (&b"MCFG"[..], 0));
            let dmar: [u8; 4] = bytes_at(memory, pointer(HEADER + 24));
            assert_eq!(&dmar, b"DMAR");
        });
    }

    /// What `acpi_tables` makes, without the header.
    fn body(table: &dyn acpi_tables::Aml) -> std::vec::Vec<u8> {
        let mut bytes = std::vec::Vec::new();
        table.to_aml_bytes(&mut bytes);
        bytes.split_off(HEADER)
    }

    #[test]
    fn each_table_is_what_acpi_tables_makes_of_its_description() {
        use acpi_tables::fadt::{FADTBuilder, Flags};
        use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
        use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT};
        use acpi_tables::{madt::ProcessorLocalApic, mcfg::MCFG};

        let (id, name) = ([0; 6], [0; 8]);
        let mut madt = MADT::new(id, name, 0, LocalInterruptController::Address(0xfee0_0000));
        for cpu in 0..2 {
            madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
        }
        madt.add_structure(IoApic::new(0, 0xfec0_0000, 0));
        assert_eq!(madt_body(2).unwrap()[..], body(&madt)[..]);

        let mut mcfg = MCFG::new(id, name, 0);
        mcfg.add_ecam(0xc000_0000, 0, 0, 0);
        assert_eq!(mcfg_body()[..], body(&mcfg)[..]);

        let port = |bits, access, port| GAS::new(AddressSpace::SystemIo, bits, 0, access, port);
        let byte = |at| port(8, AccessSize::ByteAccess, at);
        let mut fadt = FADTBuilder::new(id, name, 0)
            .dsdt_64(0xe_0030)
            .flag(Flags::TmrValExt)
            .flag(Flags::ResetRegSup)
            .flag(Flags::HwReducedAcpi);
        fadt.pm_tmr_blk = 0x608.into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, 0x608);
        fadt.century = 0x32;
        // No VGA.
        fadt.iapc_boot_arch = 4.into();
        (fadt.reset_reg, fadt.reset_value) = (byte(0xcf9), 6);
        fadt.sleep_control_reg = byte(0x604);
        fadt.sleep_status_reg = byte(0x605);
        let expected = body(&fadt.finalize());
        assert_eq!(fadt_body(Gpa::new(0xe_0030))[..], expected[..]);
    }

    #[test]
    fn more_tables_than_can_be_listed_are_refused() {
        with_memory(|memory| {
            let (start, end) = (Gpa::new(0xe_0000), Gpa::new(0xf_8000));
            let table: &[u8] = &[0; 36];
            assert!(write(memory, start, end, 1, &[table; MAX_EXTRA]).is_ok());
            let refused = write(memory, start, end, 1, &[table; MAX_EXTRA + 1]);
            assert_eq!(refused, Err(BootError::AcpiTables));
        });
    }
}
