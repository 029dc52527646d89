//! MSRs that exit: a table of what the guest has; anything else is #GP.
//!
//! The system call and segment base MSRs never exit (see `svm`'s permission map).

use super::apic::{Apic, Message};
use super::time::Time;
use crate::vcpu::{EFER_ALLOWED, EFER_LMA, EFER_LME, VcpuState};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const BIOS_SIGN_ID: u32 = 0x8b;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const NB_CFG: u32 = 0xc001_001f;

/// The guest gets #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the MSR does not exist or cannot have this value")]
pub struct Refused;

/// What a write asks of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrEffect {
    /// Nothing.
    None,
    /// The guest's time stamp counter goes on from this value.
    SetTsc(u64),
    /// The APIC sends this.
    Send(Message),
}

/// Carries out RDMSR.
pub fn read(state: &VcpuState, apic: &Apic, msr: u32, now: Time) -> Result<u64, Refused> {
    match msr {
        TSC => Ok(state.tsc),
        APIC_BASE => Ok(apic.base()),
        PAT => Ok(state.pat),
        EFER => Ok(state.efer),
        // Read by kernels before they ask whether they exist.
        BIOS_SIGN_ID | MISC_ENABLE | SYSCFG | HWCR | NB_CFG => Ok(0),
        0x800..=0x8ff => apic.read_msr(msr, now),
        _ => Err(Refused),
    }
}

/// Carries out WRMSR. On an error nothing changes.
pub fn write(
    state: &mut VcpuState,
    apic: &mut Apic,
    msr: u32,
    value: u64,
    now: Time,
) -> Result<MsrEffect, Refused> {
    match msr {
        TSC => return Ok(MsrEffect::SetTsc(value)),
        APIC_BASE => apic.set_base(value)?,
        PAT => {
            let mut types = value.to_le_bytes().into_iter();
            if !types.all(|t| matches!(t, 0 | 1 | 4..=7)) {
                return Err(Refused);
            }
            state.pat = value;
        }
        EFER => {
            // LMA follows LME and CR0.PG in hardware; a write leaves it alone.
            let switches_mode = (value ^ state.efer) & EFER_LME != 0;
            if value & !EFER_ALLOWED != 0 || (state.is_paging() && switches_mode) {
                return Err(Refused);
            }
            state.efer = value & !EFER_LMA | state.efer & EFER_LMA;
        }
        BIOS_SIGN_ID | MISC_ENABLE | SYSCFG | HWCR | NB_CFG => {}
        0x800..=0x8ff => {
            let sent = apic.write_msr(msr, value, now)?;
            return Ok(sent.map_or(MsrEffect::None, MsrEffect::Send));
        }
        _ => return Err(Refused),
    }
    Ok(MsrEffect::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_ns(0);

    #[test]
    fn unknown_msrs_and_illegal_values_are_refused() {
        let (mut state, mut apic) = (VcpuState::pvh(0, 0), Apic::new(0));
        assert_eq!(read(&state, &apic, 0xc001_0114, NOW), Err(Refused));
        for (msr, value) in [(0x1234, 0), (PAT, 2), (EFER, 1 << 12)] {
            assert_eq!(write(&mut state, &mut apic, msr, value, NOW), Err(Refused));
        }
        assert_eq!(state, VcpuState::pvh(0, 0));
    }

    #[test]
    fn long_mode_is_not_switched_while_paging_is_on() {
        let (mut state, mut apic) = (VcpuState::pvh(0, 0), Apic::new(0));
        write(&mut state, &mut apic, EFER, EFER_LME, NOW).unwrap();
        assert_eq!(read(&state, &apic, EFER, NOW), Ok(EFER_LME));
        state.cr0 |= 1 << 31;
        assert_eq!(write(&mut state, &mut apic, EFER, 0, NOW), Err(Refused));
        assert!(write(&mut state, &mut apic, EFER, EFER_LME | 1, NOW).is_ok());
    }
}
