//! Which CPU states are legal.
//!
//! AMD64 Architecture Programmer's Manual volume 2, section 15.5.1 (what VMRUN
//! checks) and chapter 3 (reserved bits).

use super::{Segment, VcpuState};

/// Why a CPU state from outside is refused. Loading it would make the hardware
/// refuse the guest, or fault in the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// A reserved bit is set, or a combination is not legal, in this register.
    #[error("the value of {0} is not one a CPU can have")]
    Illegal(&'static str),
    /// An address in this register is not canonical.
    #[error("the address in {0} is not canonical")]
    NotCanonical(&'static str),
}

/// CR0.PE.
pub(super) const CR0_PE: u64 = 1 << 0;
/// CR0.NW.
const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
const CR0_CD: u64 = 1 << 30;
/// CR0.PG.
pub(super) const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// VME to OSXMMEXCPT, UMIP, FSGSBASE, SMEP, SMAP: what the CPUID policy offers.
const CR4_ALLOWED: u64 = 0x7ff | 1 << 11 | 1 << 16 | 1 << 20 | 1 << 21;
/// EFER.LME.
pub(crate) const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub(crate) const EFER_LMA: u64 = 1 << 10;
/// SCE, LME, LMA and NXE: what the CPUID policy offers.
pub(crate) const EFER_ALLOWED: u64 = 1 | EFER_LME | EFER_LMA | 1 << 11;
/// RFLAGS bits that exist, without virtual-8086 support beyond VM itself.
const RFLAGS_ALLOWED: u64 = 0x003f_7fd7;
/// RFLAGS bit 1 is always one.
pub(super) const RFLAGS_ONE: u64 = 1 << 1;
/// RFLAGS.IF.
pub(super) const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.VM.
const RFLAGS_VM: u64 = 1 << 17;
impl VcpuState {
    /// Takes back what the guest turned on without being offered it, such as
    /// CR4.OSXSAVE. Writes of CR4 do not exit, because kernels flush their TLBs by them,
    /// and the hardware refuses only what it has not itself. So it does not last, and
    /// never gets in the way of a migration.
    pub(crate) fn withdraw_features(&mut self) {
        self.cr4 &= CR4_ALLOWED;
    }

    /// Checks everything that hardware would refuse or that would fault in the
    /// hypervisor. Call it on every state that comes from outside.
    pub fn validate(&self) -> Result<(), StateError> {
        let legal = |ok: bool, register| ok.then_some(()).ok_or(StateError::Illegal(register));
        let canonical = |address: u64, register| {
            let upper = address as i64 >> 47;
            let ok = upper == 0 || upper == -1;
            ok.then_some(()).ok_or(StateError::NotCanonical(register))
        };
        let paging = self.is_paging();
        legal(self.cr0 >> 32 == 0, "CR0")?;
        legal(self.cr0 & CR0_NW == 0 || self.cr0 & CR0_CD != 0, "CR0")?;
        legal(!paging || self.cr0 & CR0_PE != 0, "CR0")?;
        legal(self.cr3 >> 52 == 0, "CR3")?;
        legal(self.cr4 & !CR4_ALLOWED == 0, "CR4")?;
        legal(self.cr8 < 16, "CR8")?;
        legal(self.dr6 >> 32 == 0, "DR6")?;
        legal(self.dr7 >> 32 == 0, "DR7")?;
        legal(self.efer & !EFER_ALLOWED == 0, "EFER")?;
        let long = paging && self.efer & EFER_LME != 0;
        legal(long == (self.efer & EFER_LMA != 0), "EFER")?;
        legal(!long || self.cr4 & CR4_PAE != 0, "CR4")?;
        let both = Segment::LONG | Segment::DEFAULT_32;
        legal(!long || self.cs.attributes & both != both, "CS")?;
        legal(self.rflags & !RFLAGS_ALLOWED == 0, "RFLAGS")?;
        legal(self.rflags & RFLAGS_ONE != 0, "RFLAGS")?;
        legal(!long || self.rflags & RFLAGS_VM == 0, "RFLAGS")?;
        legal(self.fx.mxcsr() >> 16 == 0, "MXCSR")?;
        let types = self.pat.to_le_bytes();
        legal(types.iter().all(|t| matches!(t, 0 | 1 | 4..=7)), "PAT")?;
        legal(self.pending.is_valid(), "the pending event")?;
        legal(self.cpl < 4, "CPL")?;
        legal(self.interrupt_shadow < 2, "the interrupt shadow")?;
        legal(self.halted <= Self::WAITS_FOR_STARTUP, "the halt state")?;
        legal(self.nmi_masked < 2, "the NMI mask")?;
        let masked = self.nmi_masked != 0;
        legal(masked || !self.pending.is_nmi(), "the NMI mask")?;
        let waits = self.halted == Self::WAITS_FOR_STARTUP;
        legal(!masked || !waits, "the NMI mask")?;
        legal(self.reserved == [0; 4], "the reserved bytes")?;
        let segments = [self.es, self.cs, self.ss, self.ds, self.fs, self.gs];
        let packed = |segment: &Segment| segment.attributes >> 12 == 0;
        legal(segments.iter().all(packed), "a segment")?;
        legal(packed(&self.ldtr) && packed(&self.tr), "a system segment")?;
        for (address, register) in [
            (self.rip, "RIP"),
            (self.fs.base, "FS"),
            (self.gs.base, "GS"),
            (self.gdtr.base, "GDTR"),
            (self.ldtr.base, "LDTR"),
            (self.idtr.base, "IDTR"),
            (self.tr.base, "TR"),
            (self.lstar, "LSTAR"),
            (self.cstar, "CSTAR"),
            (self.kernel_gs_base, "KERNEL_GS_BASE"),
            (self.sysenter_esp, "SYSENTER_ESP"),
            (self.sysenter_eip, "SYSENTER_EIP"),
        ] {
            canonical(address, register)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::Pending;

    #[test]
    fn a_feature_that_is_not_offered_does_not_last() {
        let mut state = VcpuState::pvh(0, 0);
        state.cr4 = CR4_PAE | 1 << 18;
        assert_eq!(state.validate(), Err(StateError::Illegal("CR4")));
        state.withdraw_features();
        assert_eq!((state.cr4, state.validate()), (CR4_PAE, Ok(())));
    }

    #[test]
    fn the_start_state_is_valid() {
        assert_eq!(VcpuState::pvh(0x10_0000, 0x9000).validate(), Ok(()));
    }

    #[test]
    fn states_that_hardware_would_refuse_are_named() {
        type Change = fn(&mut VcpuState);
        let changes: [(&str, Change); 15] = [
            ("CR0", |s| s.cr0 |= 1 << 40),
            ("CR0", |s| s.cr0 = CR0_PG),
            ("CR4", |s| s.cr4 |= 1 << 18),
            ("EFER", |s| s.efer |= 1 << 12),
            ("EFER", |s| s.efer |= EFER_LMA),
            ("RFLAGS", |s| s.rflags = 0),
            ("DR7", |s| s.dr7 |= 1 << 32),
            ("MXCSR", |s| s.fx.0[27] = 0x80),
            ("PAT", |s| s.pat = 2),
            ("the pending event", |s| s.pending.kind = 9),
            ("the pending event", |s| s.pending = Pending::interrupt(3)),
            ("CPL", |s| s.cpl = 4),
            ("the NMI mask", |s| s.nmi_masked = 2),
            ("the NMI mask", |s| s.pending = Pending::nmi()),
            ("the NMI mask", |s| {
                (s.nmi_masked, s.halted) = (1, VcpuState::WAITS_FOR_STARTUP);
            }),
        ];
        for (register, change) in changes {
            let mut state = VcpuState::pvh(0, 0);
            change(&mut state);
            assert_eq!(state.validate(), Err(StateError::Illegal(register)));
        }
        let mut state = VcpuState::pvh(0, 0);
        state.lstar = 1 << 47;
        assert_eq!(state.validate(), Err(StateError::NotCanonical("LSTAR")));
    }

    #[test]
    fn long_mode_needs_pae() {
        let mut state = VcpuState::pvh(0, 0);
        state.cr0 |= CR0_PG;
        state.efer = EFER_LME | EFER_LMA;
        assert_eq!(state.validate(), Err(StateError::Illegal("CR4")));
        state.cr4 = CR4_PAE;
        state.cs.attributes = 0xa9b;
        assert_eq!(state.validate(), Ok(()));
        assert!(state.is_64_bit());
    }
}
