use super::*;

/// Memory from 0x1000 on; everything else is unreadable.
#[derive(Debug)]
struct Ram(Vec<u8>);

const BASE: u64 = 0x1000;

impl ReadPhys for Ram {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Unreadable> {
        let start = at.checked_sub(BASE).ok_or(Unreadable(at))? as usize;
        let end = start.checked_add(to.len()).ok_or(Unreadable(at))?;
        to.copy_from_slice(self.0.get(start..end).ok_or(Unreadable(at))?);
        Ok(())
    }
}

impl Ram {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = (at - BASE) as usize;
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

fn sealed(mut bytes: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    bytes[checksum_at] = 0;
    bytes[checksum_at] = 0u8.wrapping_sub(sum(&bytes));
    bytes
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(signature);
    bytes.extend(body);
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    sealed(bytes, 9)
}

fn fadt(port: u32, extended: Option<u64>, flags: u32) -> Vec<u8> {
    let mut bytes = vec![0; if extended.is_some() { 244 } else { 116 } - HEADER];
    bytes[76 - HEADER..][..4].copy_from_slice(&port.to_le_bytes());
    bytes[91 - HEADER] = 4;
    bytes[112 - HEADER..][..4].copy_from_slice(&flags.to_le_bytes());
    if let Some(port) = extended {
        bytes[208 - HEADER] = 1;
        bytes[212 - HEADER..][..8].copy_from_slice(&port.to_le_bytes());
    }
    table(b"FACP", &bytes)
}

const RSDP_AT: u64 = 0x1000;
const ROOT_AT: u64 = 0x1100;
const FADT_AT: u64 = 0x1200;
const DMAR_AT: u64 = 0x1400;

/// A machine with a FADT and a DMAR, listed in an XSDT or an RSDT.
fn machine(with_xsdt: bool) -> Ram {
    let mut ram = Ram(vec![0; 0x1000]);
    let mut rsdp = vec![0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    let mut entries = Vec::new();
    for entry in [0xdead_0000, FADT_AT, DMAR_AT] {
        let bytes = entry.to_le_bytes();
        entries.extend(if with_xsdt { &bytes[..] } else { &bytes[..4] });
    }
    if with_xsdt {
        rsdp[15] = 2;
        rsdp[24..32].copy_from_slice(&ROOT_AT.to_le_bytes());
        ram.put(ROOT_AT, &table(b"XSDT", &entries));
    } else {
        rsdp[16..20].copy_from_slice(&(ROOT_AT as u32).to_le_bytes());
        ram.put(ROOT_AT, &table(b"RSDT", &entries));
    }
    let first = sealed(rsdp[..20].to_vec(), 8);
    rsdp[..20].copy_from_slice(&first);
    ram.put(RSDP_AT, &sealed(rsdp, 32));
    ram.put(FADT_AT, &fadt(0x608, None, 0));
    ram.put(DMAR_AT, &table(b"DMAR", &[38, 0, 1, 2]));
    ram
}

#[test]
fn tables_are_found_through_either_root() {
    for with_xsdt in [true, false] {
        let ram = machine(with_xsdt);
        let tables = Tables::new(&ram, Some(RSDP_AT)).unwrap();
        let timer = PmTimer {
            port: 0x608,
            is_32_bit: false,
        };
        assert_eq!(tables.pm_timer(), Ok(timer));
        let mut buffer = [0; 64];
        let dmar = tables.copy(DMAR, &mut buffer).unwrap();
        assert_eq!(dmar[HEADER..], [38, 0, 1, 2]);
        let missing = Signature(*b"MCFG");
        assert_eq!(
            tables.copy(missing, &mut buffer),
            Err(AcpiError::Missing(missing))
        );
        assert_eq!(
            tables.copy(DMAR, &mut buffer[..39]),
            Err(AcpiError::Length(DMAR))
        );
    }
}

#[test]
fn the_extended_timer_block_and_width_are_used() {
    let mut ram = machine(true);
    ram.put(FADT_AT, &fadt(0x608, Some(0xb008), 1 << 8));
    let timer = Tables::new(&ram, Some(RSDP_AT)).unwrap().pm_timer();
    assert_eq!(
        timer,
        Ok(PmTimer {
            port: 0xb008,
            is_32_bit: true
        })
    );
}

#[test]
fn a_timer_without_a_port_is_no_timer() {
    for (port, extended) in [(0, None), (0x10_0000, None), (0, Some(0x10_0000))] {
        let mut ram = machine(true);
        ram.put(FADT_AT, &fadt(port, extended, 0));
        let timer = Tables::new(&ram, Some(RSDP_AT)).unwrap().pm_timer();
        assert_eq!(timer, Err(AcpiError::NoTimer));
    }
}

#[test]
fn a_machine_without_root_pointer_is_refused() {
    let ram = machine(true);
    for rsdp in [None, Some(ROOT_AT)] {
        assert_eq!(
            Tables::new(&ram, rsdp).unwrap_err(),
            AcpiError::NoRootPointer
        );
    }
    assert!(matches!(
        Tables::new(&ram, Some(u64::MAX)).unwrap_err(),
        AcpiError::Unreadable(_)
    ));
}

#[test]
fn any_single_changed_byte_of_a_table_is_noticed() {
    for at in (RSDP_AT..RSDP_AT + 36).chain(DMAR_AT..DMAR_AT + 40) {
        let mut ram = machine(true);
        ram.0[(at - BASE) as usize] ^= 0x40;
        let mut buffer = [0; 64];
        let result = Tables::new(&ram, Some(RSDP_AT))
            .and_then(|tables| tables.copy(DMAR, &mut buffer).map(|_| ()));
        assert!(result.is_err(), "byte {at:#x}");
    }
}

#[test]
fn a_length_that_makes_no_sense_is_refused() {
    for length in [0u32, 35, u32::MAX] {
        let mut ram = machine(true);
        ram.put(DMAR_AT + 4, &length.to_le_bytes());
        let tables = Tables::new(&ram, Some(RSDP_AT)).unwrap();
        assert_eq!(
            tables.copy(DMAR, &mut [0; 64]),
            Err(AcpiError::Length(DMAR))
        );
    }
}
