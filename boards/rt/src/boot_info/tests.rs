use super::*;

/// 64 KiB of memory from 0 on; address 0 itself reads like any other.
#[derive(Debug)]
struct Ram(Vec<u8, 0x1_0000>);

impl ReadPhys for Ram {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Unreadable> {
        let end = at.checked_add(to.len() as u64).ok_or(Unreadable(at))?;
        let bytes = self.0.get(at as usize..end as usize);
        to.copy_from_slice(bytes.ok_or(Unreadable(at))?);
        Ok(())
    }
}

impl Ram {
    fn put(&mut self, at: u64, value: &(impl IntoBytes + zerocopy::Immutable)) {
        let bytes = value.as_bytes();
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

const INFO_AT: u64 = 0x100;
const MAP_AT: u64 = 0x200;
const MODULES_AT: u64 = 0x1000;
const COMMAND_LINE_AT: u64 = 0x2000;

const INFO: StartInfo = StartInfo {
    magic: MAGIC,
    version: 1,
    flags: 0,
    modules: 1,
    module_list: MODULES_AT,
    command_line: COMMAND_LINE_AT,
    rsdp: 0xf_5b20,
    memory_map: MAP_AT,
    memory_map_entries: 2,
    reserved: 0,
};

const MODULE: ModuleEntry = ModuleEntry {
    address: 0x50_0000,
    bytes: 0x1234,
    command_line: 0,
    reserved: 0,
};

fn ram() -> Ram {
    let mut ram = Ram(Vec::new());
    ram.0.resize(0x1_0000, 0).unwrap();
    for (index, address, bytes, kind) in
        [(0, 0x10_0000, 0x1000_0000, 1), (1, 0xf_0000, 0x1_0000, 2)]
    {
        let entry = MemoryMapEntry {
            address,
            bytes,
            kind,
            reserved: 0,
        };
        ram.put(MAP_AT + 24 * index, &entry);
    }
    ram.put(MODULES_AT, &MODULE);
    ram.put(COMMAND_LINE_AT, b"role=none");
    ram.put(INFO_AT, &INFO);
    ram
}

fn read_with(change: impl FnOnce(&mut Ram, &mut StartInfo)) -> Result<BootInfo, BootInfoError> {
    let mut ram = ram();
    let mut info = INFO;
    change(&mut ram, &mut info);
    ram.put(INFO_AT, &info);
    BootInfo::read(&ram, INFO_AT)
}

#[test]
fn what_the_boot_loader_says_is_understood() {
    let info = read_with(|_, _| ()).unwrap();
    let range = |start, bytes| PhysRange::new(start, bytes).unwrap();
    let usable = Region {
        range: range(0x10_0000, 0x1000_0000),
        kind: RegionKind::Usable,
    };
    assert_eq!(info.regions()[0], usable);
    assert_eq!(info.regions()[1].kind, RegionKind::Reserved);
    assert_eq!(info.modules(), [range(0x50_0000, 0x1234)]);
    assert_eq!(info.command_line(), "role=none");
    assert_eq!(info.rsdp(), Some(0xf_5b20));
}

#[test]
fn what_is_absent_is_absent() {
    let info = read_with(|_, info| {
        info.modules = 0;
        info.command_line = 0;
        info.rsdp = 0;
    })
    .unwrap();
    assert_eq!(
        (info.modules(), info.command_line(), info.rsdp()),
        (&[][..], "", None)
    );
}

#[test]
fn another_protocol_or_version_is_refused() {
    assert_eq!(
        read_with(|_, info| info.magic = 0x36d7_6289),
        Err(BootInfoError::Magic(0x36d7_6289))
    );
    assert_eq!(
        read_with(|_, info| info.version = 0),
        Err(BootInfoError::Version(0))
    );
}

#[test]
fn counts_beyond_what_fits_are_refused() {
    for count in [0, MAX_REGIONS as u32 + 1] {
        assert_eq!(
            read_with(|_, info| info.memory_map_entries = count),
            Err(BootInfoError::MemoryMapLength(count))
        );
    }
    let many = MAX_MODULES as u32 + 1;
    let too_many = read_with(|ram, info| {
        info.modules = many;
        for index in 0..u64::from(many) {
            ram.put(MODULES_AT + 32 * index, &MODULE);
        }
    });
    assert_eq!(too_many, Err(BootInfoError::ModuleCount(many)));
}

#[test]
fn a_module_must_lie_in_usable_memory() {
    let with_module = |address, bytes| {
        read_with(|ram, _| {
            let module = ModuleEntry {
                address,
                bytes,
                ..MODULE
            };
            ram.put(MODULES_AT, &module);
        })
    };
    let outside = Err(BootInfoError::ModuleOutsideMemory(0));
    assert_eq!(with_module(0xf_0000, 16), outside);
    assert_eq!(with_module(0x10ff_ffff, 0x10_0002), outside);
    assert_eq!(
        with_module(u64::MAX, 2),
        Err(BootInfoError::Wraps(u64::MAX, 2))
    );
}

#[test]
fn addresses_that_lead_nowhere_are_refused() {
    for nowhere in [0xffff, 1 << 40, u64::MAX - 4] {
        for change in [
            |info: &mut StartInfo, to| info.memory_map = to,
            |info: &mut StartInfo, to| info.module_list = to,
        ] {
            let result = read_with(|_, info| change(info, nowhere));
            assert!(
                matches!(result, Err(BootInfoError::Unreadable(_))),
                "{nowhere:#x}: {result:?}"
            );
        }
    }
    assert!(BootInfo::read(&ram(), u64::MAX).is_err());
}

#[test]
fn a_command_line_without_end_or_in_no_encoding_is_refused() {
    assert_eq!(
        read_with(|ram, _| ram.put(COMMAND_LINE_AT, &[b'a'; MAX_COMMAND_LINE + 1])),
        Err(BootInfoError::CommandLineLength)
    );
    let longest = read_with(|ram, _| ram.put(COMMAND_LINE_AT, &[b'a'; MAX_COMMAND_LINE])).unwrap();
    assert_eq!(longest.command_line().len(), MAX_COMMAND_LINE);
    assert_eq!(
        read_with(|ram, _| ram.put(COMMAND_LINE_AT, &[0xff, 0xfe])),
        Err(BootInfoError::CommandLineText)
    );
}
