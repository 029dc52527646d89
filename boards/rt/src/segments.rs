//! Segments and the task state segment: the flat 64-bit segments, and the stacks
//! that interrupts switch to.
#![allow(unsafe_code)]

use crate::processors::MAX_CPUS;
use crate::stacks;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

/// The interrupt stack table's slots, as an interrupt gate names them: from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum StackSlot {
    /// Devices and timers.
    Interrupt = 1,
    /// Exceptions that have no stack of their own.
    Exception,
    /// Non-maskable interrupts.
    Nmi,
    /// Double faults.
    DoubleFault,
    /// Machine checks.
    MachineCheck,
}

static TSS: [Once<TaskStateSegment>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
static GDT: [Once<GlobalDescriptorTable>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// Loads the segment registers and the task register of this CPU, whose number is
/// `cpu`: below [`MAX_CPUS`], 0 for the boot CPU.
pub(crate) fn load(cpu: usize) {
    let tss = TSS[cpu].call_once(|| {
        let mut tss = TaskStateSegment::new();
        for (slot, stack) in [
            (StackSlot::Interrupt, stacks::INTERRUPT),
            (StackSlot::Exception, stacks::EXCEPTION),
            (StackSlot::Nmi, stacks::NMI),
            (StackSlot::DoubleFault, stacks::DOUBLE_FAULT),
            (StackSlot::MachineCheck, stacks::MACHINE_CHECK),
        ] {
            tss.interrupt_stack_table[slot as usize - 1] =
                VirtAddr::new(stacks::address(cpu, stack.top));
        }
        tss
    });
    let mut gdt = GlobalDescriptorTable::new();
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    GDT[cpu].call_once(|| gdt).load();
    // SAFETY: the table just loaded has these descriptors at these selectors, of
    // the kind each register needs, and lives as long as the program.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
    }
}
