//! Does what no driver would, and insists on the architecture's answer: #GP, all ones,
//! or nothing. The work that follows needs a machine that is whole.

mod cpu;

use crate::machine::{MachineError, find_device};
use core::sync::atomic::{AtomicU64, Ordering};
use cpu::Faults;
use hv_core::mmio::Mmio;
use strandline_rt::pci::{ConfigPorts, Function, read_config};
use strandline_rt::physical::{MmioWindow, PhysRange};

/// An MSR that no CPU has.
const NO_MSR: u32 = 0x1234;
/// MTRRcap, which cannot be written.
const READ_ONLY_MSR: u32 = 0xfe;
/// The time stamp counter's, which every CPU has.
const TSC_MSR: u32 = 0x10;
/// A port that nothing is at.
const NO_PORT: u16 = 0x2f0;
/// An address that nothing is at.
const NO_REGISTERS: u64 = 0xfd00_0000;
/// Configuration space of bus 0 in memory.
const ECAM: u64 = 0xc000_0000;
/// The requester id of a function that is not there, and of the host bridge.
const NO_FUNCTION: u16 = 0x1f << 3;
const HOST_BRIDGE: u16 = 0;
/// Offsets of registers in configuration space.
const BAR_0: u16 = 0x10;
const MSI: u16 = 0x40;
/// Registers of the device: its identity, raise and acknowledge an interrupt.
const EDU_ID: usize = 0;
const EDU_RAISE: usize = 0x60;
const EDU_ACKNOWLEDGE: usize = 0x64;

/// Memory that must stay as it is.
static VICTIM: AtomicU64 = AtomicU64::new(INTACT);
const INTACT: u64 = 0x5afe_5afe_5afe_5afe;

/// Why the machine is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostileError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("hostile: {0}, and the machine answered {1:#x}")]
    Answer(&'static str, u64),
}

/// Tries everything.
pub(crate) fn probe() -> Result<(), HostileError> {
    model_specific_registers()?;
    ports()?;
    memory()?;
    let (config, function) = find_device().map_err(MachineError::from)?;
    configuration_space(&config)?;
    base_address(&config, function)?;
    interrupt_message(&config, function)?;
    log::info!("hostile: every answer was right");
    Ok(())
}

/// Ends with a triple fault.
pub(crate) fn triple_fault() -> ! {
    cpu::triple_fault()
}

fn expect(what: &'static str, answer: u64, right: u64) -> Result<(), HostileError> {
    match answer == right {
        true => Ok(()),
        false => Err(HostileError::Answer(what, answer)),
    }
}

fn model_specific_registers() -> Result<(), HostileError> {
    let faults = Faults::catch();
    for _ in 0..100 {
        let faulted = faults.read_msr(NO_MSR);
        expect("it read an unknown MSR", faulted.into(), 1)?;
        let faulted = faults.write_msr(NO_MSR, 0);
        expect("it wrote an unknown MSR", faulted.into(), 1)?;
    }
    let faulted = faults.write_msr(READ_ONLY_MSR, 0);
    expect("it wrote a read-only MSR", faulted.into(), 1)?;
    expect("it read the TSC", faults.read_msr(TSC_MSR).into(), 0)
}

fn ports() -> Result<(), HostileError> {
    let faulted = Faults::catch().write_string(NO_PORT);
    expect("it wrote a string to a port", faulted.into(), 1)?;
    let answer = cpu::read_port(NO_PORT).into();
    expect("it read a port that is not there", answer, u32::MAX.into())?;
    cpu::write_port(NO_PORT, 0);
    Ok(())
}

fn memory() -> Result<(), HostileError> {
    let nothing = window(NO_REGISTERS)?;
    for _ in 0..100 {
        nothing.write32(0, 0);
        let answer = nothing.read32(0).into();
        expect("it read where nothing is", answer, u32::MAX.into())?;
        expect("it read 64 bits there", nothing.read64(8), u64::MAX)?;
    }
    Ok(())
}

/// A page of registers that the guest has no driver for.
#[allow(unsafe_code)]
fn window(start: u64) -> Result<MmioWindow, MachineError> {
    let bytes = hv_core::PAGE_SIZE;
    // SAFETY: no memory of this program is there, and no device does anything for it.
    unsafe { MmioWindow::new(PhysRange { start, bytes }) }.ok_or(MachineError::Memory)
}

/// Missing functions are missing, by ports and in memory, and what is there is the
/// same by either.
fn configuration_space(config: &ConfigPorts) -> Result<(), HostileError> {
    for (function, right) in [
        (NO_FUNCTION, u32::MAX),
        (HOST_BRIDGE, read_config(config, HOST_BRIDGE, 0)),
    ] {
        let in_memory = window(ECAM + (u64::from(function) << 12))?;
        in_memory.write32(0, 0);
        let answer = read_config(config, function, 0);
        expect("it read an id by ports", answer.into(), right.into())?;
        let answer = in_memory.read32(0);
        expect("it read an id in memory", answer.into(), right.into())?;
    }
    Ok(())
}

/// The device's registers, moved over memory, stay where they are.
fn base_address(config: &ConfigPorts, function: Function) -> Result<(), HostileError> {
    let (id, victim) = (function.requester_id(), VICTIM.as_ptr() as u64);
    let home = read_config(config, id, BAR_0);
    cpu::write_config(id, BAR_0, victim as u32);
    let answer = read_config(config, id, BAR_0);
    expect("it moved registers over memory", answer.into(), home.into())?;
    let registers = window(u64::from(home))?;
    let answer = u64::from(registers.read32(EDU_ID)) & 0xff;
    expect("it read the device's id at home", answer, 0xed)?;
    intact()
}

/// A message to memory instead of an interrupt controller goes nowhere.
fn interrupt_message(config: &ConfigPorts, function: Function) -> Result<(), HostileError> {
    let (id, victim) = (function.requester_id(), VICTIM.as_ptr() as u64);
    let registers = window(u64::from(read_config(config, id, BAR_0)))?;
    cpu::write_config(id, MSI + 4, victim as u32);
    cpu::write_config(id, MSI + 8, (victim >> 32) as u32);
    cpu::write_config(id, MSI + 12, 0xffff);
    cpu::write_config(id, MSI, 1 << 16);
    registers.write32(EDU_RAISE, 1);
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
    registers.write32(EDU_ACKNOWLEDGE, 1);
    cpu::write_config(id, MSI, 0);
    intact()
}

fn intact() -> Result<(), HostileError> {
    let answer = VICTIM.load(Ordering::Relaxed);
    expect("something wrote to its memory", answer, INTACT)
}
