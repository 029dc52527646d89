//! MSRs that exit: what `policy` lists; anything else is #GP.
//!
//! The system call and segment base MSRs never exit (see `svm`'s permission map).

use super::apic::{Apic, Message};
use super::policy::{self, Msr};
use super::time::Time;
use crate::vcpu::{EFER_ALLOWED, EFER_LMA, EFER_LME, VcpuState};

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
pub fn read(state: &VcpuState, apic: &Apic, number: u32, now: Time) -> Result<u64, Refused> {
    match policy::msr(number).ok_or(Refused)? {
        Msr::TimeStamp => Ok(state.tsc),
        Msr::ApicBase => Ok(apic.base()),
        Msr::Pat => Ok(state.pat),
        Msr::Efer => Ok(state.efer),
        Msr::X2Apic => apic.read_msr(number, now),
        Msr::ReadOnly(value) | Msr::Constant(value) => Ok(value),
    }
}

/// Carries out WRMSR. On an error nothing changes.
pub fn write(
    state: &mut VcpuState,
    apic: &mut Apic,
    number: u32,
    value: u64,
    now: Time,
) -> Result<MsrEffect, Refused> {
    match policy::msr(number).ok_or(Refused)? {
        Msr::TimeStamp => return Ok(MsrEffect::SetTsc(value)),
        Msr::ApicBase => apic.set_base(value)?,
        Msr::Pat => {
            let mut types = value.to_le_bytes().into_iter();
            if !types.all(|t| matches!(t, 0 | 1 | 4..=7)) {
                return Err(Refused);
            }
            state.pat = value;
        }
        Msr::Efer => {
            // LMA follows LME and CR0.PG in hardware; a write leaves it alone.
            let switches_mode = (value ^ state.efer) & EFER_LME != 0;
            if value & !EFER_ALLOWED != 0 || (state.is_paging() && switches_mode) {
                return Err(Refused);
            }
            state.efer = value & !EFER_LMA | state.efer & EFER_LMA;
        }
        Msr::X2Apic => {
            let sent = apic.write_msr(number, value, now)?;
            return Ok(sent.map_or(MsrEffect::None, MsrEffect::Send));
        }
        Msr::ReadOnly(_) => return Err(Refused),
        Msr::Constant(_) => {}
    }
    Ok(MsrEffect::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_ns(0);
    const PAT: u32 = 0x277;
    const EFER: u32 = 0xc000_0080;
    const MTRR_CAP: u32 = 0xfe;

    #[test]
    fn unknown_msrs_and_illegal_values_are_refused() {
        let (mut state, mut apic) = (VcpuState::pvh(0, 0), Apic::new(0));
        assert_eq!(read(&state, &apic, 0xc001_0114, NOW), Err(Refused));
        for (msr, value) in [(0x1234, 0), (PAT, 2), (EFER, 1 << 12), (MTRR_CAP, 0)] {
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
