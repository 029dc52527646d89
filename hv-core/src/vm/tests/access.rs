//! Accesses to device registers in memory.

use super::*;

#[derive(Default)]
struct Registers(Vec<(u64, u8, Option<u64>)>);

impl MmioDevice for Registers {
    fn read(&mut self, offset: u64, width: u8) -> u64 {
        self.0.push((offset, width, None));
        0x8899_aabb_ccdd_eeff
    }
    fn write(&mut self, offset: u64, width: u8, value: u64) {
        self.0.push((offset, width, Some(value)));
    }
}

fn at_the_viommu(device: &mut Registers) -> MmioRegion<'_> {
    MmioRegion {
        gpa: Gpa::new(0xfed9_0000),
        bytes: 0x1000,
        counts_as: Reason::Iommu,
        device,
    }
}

#[test]
fn a_move_to_a_region_of_the_image_reaches_it_across_a_page_boundary() {
    // mov dword [rdi], 0x11223344
    let exits = [Exit::NestedFault(fault(0xfed9_0010))];
    let mut registers = Registers::default();
    with_vm(&exits, |vm, memory| {
        let code = [0xc7, 0x07, 0x44, 0x33, 0x22, 0x11];
        memory.write(Gpa::new(CODE.into()), &code).unwrap();
        let mut outside = Outside {
            mmio: &mut [at_the_viommu(&mut registers)],
            console: &mut |_| {},
        };
        assert_eq!(vm.run(&mut outside), Event::MmioDone);
        assert_eq!(vm.cpus[0].state.rip, u64::from(CODE) + 6);
    });
    assert_eq!(registers.0, [(0x10, 4, Some(0x1122_3344))]);
}

#[test]
fn a_read_extends_as_the_instruction_says() {
    // movsx rax, byte [rdi]; then mov eax, [rdi], where nothing is.
    let exits = [
        Exit::NestedFault(fault(0xfed9_0fff)),
        Exit::NestedFault(fault(0xfed9_0ffd)),
    ];
    let mut registers = Registers::default();
    with_vm(&exits, |vm, memory| {
        let code = [0x48, 0x0f, 0xbe, 0x07, 0x8b, 0x07];
        memory.write(Gpa::new(CODE.into()), &code).unwrap();
        let mut outside = Outside {
            mmio: &mut [at_the_viommu(&mut registers)],
            console: &mut |_| {},
        };
        assert_eq!(vm.run(&mut outside), Event::MmioDone);
        assert_eq!(vm.cpus[0].state.gpr[RAX], u64::MAX);
        // The second access ends past the region: nobody answers.
        assert_eq!(vm.run(&mut outside), Event::Interrupted);
        assert_eq!(vm.cpus[0].state.gpr[RAX], 0xffff_ffff);
    });
    assert_eq!(registers.0, [(0xfff, 1, None)]);
}

#[test]
fn a_read_modify_write_reads_once_writes_once_and_sets_flags() {
    // lock and dword [rdi], 0xf; cmp eax, [rdi]; xchg [rdi], eax
    let exits = [Exit::NestedFault(fault(0xfed9_0010)); 3];
    let mut registers = Registers::default();
    with_vm(&exits, |vm, memory| {
        let code = [0xf0, 0x83, 0x27, 0x0f, 0x3b, 0x07, 0x87, 0x07];
        memory.write(Gpa::new(CODE.into()), &code).unwrap();
        vm.cpus[0].state.gpr[RAX] = 0xccdd_eeff;
        let mut outside = Outside {
            mmio: &mut [at_the_viommu(&mut registers)],
            console: &mut |_| {},
        };
        assert_eq!(vm.run(&mut outside), Event::MmioDone);
        assert_eq!(vm.cpus[0].state.rflags & 0x8d5, 1 << 2, "parity of 0xf");
        assert_eq!(vm.run(&mut outside), Event::MmioDone);
        assert_eq!(vm.cpus[0].state.rflags & 1 << 6, 1 << 6, "equal");
        vm.cpus[0].state.gpr[RAX] = 0x1234;
        assert_eq!(vm.run(&mut outside), Event::MmioDone);
        assert_eq!(vm.cpus[0].state.gpr[RAX], 0xccdd_eeff);
        assert_eq!(vm.cpus[0].state.rip, u64::from(CODE) + 8);
    });
    let (read, write) = ((0x10, 4, None), |value| (0x10, 4, Some(value)));
    assert_eq!(registers.0, [read, write(0xf), read, read, write(0x1234)]);
}

#[test]
fn what_a_cpu_cannot_go_on_from_ends_this_guest_only() {
    let gpa = Gpa::new(0x9000_0000);
    let rip = u64::from(CODE);
    let fetch = NestedFault {
        fetch: true,
        ..fault(gpa.raw())
    };
    let walk = NestedFault {
        table_walk: true,
        ..fault(gpa.raw())
    };
    for (exit, error) in [
        (Exit::Shutdown, GuestError::TripleFault { rip }),
        (Exit::InvalidState, GuestError::InvalidState { rip }),
        (
            Exit::NestedFault(fetch),
            GuestError::CpuOutsideMemory { gpa },
        ),
        (
            Exit::NestedFault(walk),
            GuestError::CpuOutsideMemory { gpa },
        ),
        // adc [rdi], eax
        (
            Exit::NestedFault(fault(gpa.raw())),
            GuestError::Instruction { rip, gpa },
        ),
        (
            Exit::Unexpected(0x63),
            GuestError::Unexpected { code: 0x63, rip },
        ),
    ] {
        with_vm(&[exit], |vm, memory| {
            memory.write(Gpa::new(CODE.into()), &[0x11, 0x07]).unwrap();
            assert_eq!(run(vm), Event::Fatal(error));
        });
    }
}
