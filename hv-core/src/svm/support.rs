//! Whether this CPU can run guests with SVM, and what is missing if not.
//!
//! AMD64 Architecture Programmer's Manual volume 2, section 15.4.

use super::hw;
use raw_cpuid::cpuid;

/// What this CPU lacks to run guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SvmError {
    /// CPUID does not offer SVM.
    #[error("this CPU has no SVM (CPUID 8000_0001h, ECX bit 2)")]
    NoSvm,
    /// Firmware disabled it.
    #[error("SVM is disabled by the firmware (VM_CR.SVMDIS)")]
    Disabled,
    /// There is no nested paging.
    #[error("this CPU has no nested paging (CPUID 8000_000Ah, EDX bit 0)")]
    NoNestedPaging,
    /// Too few address space identifiers: 0 is the host's, 1 the guest's.
    #[error("this CPU has fewer than two address space identifiers")]
    NoAsid,
    /// The pool cannot give the frames the structures need.
    #[error("the frame pool cannot give {needed} contiguous frames")]
    OutOfFrames {
        /// Frames in one piece.
        needed: u64,
    },
}

/// What SVM on this CPU can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Support {
    /// The VMCB holds the next RIP after an intercepted instruction.
    pub saves_next_rip: bool,
    /// Address space identifiers, the host's included.
    pub asids: u32,
}

/// CPUID 8000_0001h ECX: SVM.
const SVM: u32 = 1 << 2;
/// CPUID 8000_000Ah EDX: nested paging.
const NESTED_PAGING: u32 = 1 << 0;
/// CPUID 8000_000Ah EDX: NRIP save.
const NEXT_RIP: u32 = 1 << 3;

/// Checks that SVM with nested paging can be used. It changes nothing. Needs
/// privilege level 0.
pub fn check_support() -> Result<Support, SvmError> {
    let extended = cpuid!(0x8000_0000).eax;
    if extended < 0x8000_000a || cpuid!(0x8000_0001).ecx & SVM == 0 {
        return Err(SvmError::NoSvm);
    }
    if hw::svm_is_disabled() {
        return Err(SvmError::Disabled);
    }
    let features = cpuid!(0x8000_000a);
    if features.edx & NESTED_PAGING == 0 {
        return Err(SvmError::NoNestedPaging);
    }
    if features.ebx < 2 {
        return Err(SvmError::NoAsid);
    }
    Ok(Support {
        saves_next_rip: features.edx & NEXT_RIP != 0,
        asids: features.ebx,
    })
}
