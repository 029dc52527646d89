//! The state of one virtual CPU: what an exit handler works on and what migrates.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Indices into [`VcpuState::gpr`], in the order of instruction encodings.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// A segment register with its hidden part, or a descriptor table register (where
/// only base and limit count). AMD64 APM volume 2, section 15.5.1 and appendix B.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Bits 55:52 and 47:40 of the descriptor, packed: type 3:0, S 4, DPL 6:5, P 7,
    /// AVL 8, L 9, D/B 10, G 11.
    pub attributes: u16,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// The base address.
    pub base: u64,
}

impl Segment {
    /// The attribute bit L: 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// The attribute bit D/B.
    pub const DEFAULT_32: u16 = 1 << 10;

    const fn flat(selector: u16, attributes: u16) -> Self {
        Self {
            selector,
            attributes,
            limit: u32::MAX,
            base: 0,
        }
    }
}

/// An interrupt or exception to be delivered at the next entry. All zero: none.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pending {
    kind: u8,
    vector: u8,
    has_error_code: u8,
    reserved: u8,
    error_code: u32,
}

impl Pending {
    /// Nothing to deliver.
    pub const NONE: Self = Self::new(0, 0, None);
    /// Invalid opcode.
    pub const UD: Self = Self::exception(6, None);
    /// General protection with error code 0.
    pub const GP: Self = Self::exception(13, Some(0));

    const INTERRUPT: u8 = 1;
    const NMI: u8 = 2;
    const EXCEPTION: u8 = 3;

    const fn new(kind: u8, vector: u8, error_code: Option<u32>) -> Self {
        let (has_error_code, error_code) = match error_code {
            Some(code) => (1, code),
            None => (0, 0),
        };
        Self {
            kind,
            vector,
            has_error_code,
            reserved: 0,
            error_code,
        }
    }

    /// An external interrupt.
    pub const fn interrupt(vector: u8) -> Self {
        Self::new(Self::INTERRUPT, vector, None)
    }

    /// A non-maskable interrupt.
    pub const fn nmi() -> Self {
        Self::new(Self::NMI, 2, None)
    }

    /// An exception, `vector` below 32.
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        Self::new(Self::EXCEPTION, vector, error_code)
    }

    /// Whether there is nothing to deliver.
    pub fn is_none(&self) -> bool {
        self.kind == 0
    }

    /// Whether this is an external interrupt.
    pub fn is_interrupt(&self) -> bool {
        self.kind == Self::INTERRUPT
    }

    /// Whether this is a non-maskable interrupt.
    pub fn is_nmi(&self) -> bool {
        self.kind == Self::NMI
    }

    /// The vector.
    pub fn vector(&self) -> u8 {
        self.vector
    }

    /// The error code that is pushed, if one is.
    pub fn error_code(&self) -> Option<u32> {
        (self.has_error_code != 0).then_some(self.error_code)
    }

    fn is_valid(&self) -> bool {
        let kind_ok = match self.kind {
            0 => self.vector == 0,
            Self::INTERRUPT => self.vector >= 16,
            Self::NMI => self.vector == 2,
            Self::EXCEPTION => self.vector < 32 && self.vector != 2,
            _ => false,
        };
        let code_ok =
            self.has_error_code == 0 || (self.has_error_code == 1 && self.kind == Self::EXCEPTION);
        kind_ok && code_ok && self.reserved == 0
    }
}

/// The x87, MMX and SSE registers as FXSAVE64 stores them (AMD64 APM volume 2,
/// figure 11-7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
pub struct Fx(pub [u8; 512]);

impl Fx {
    const MXCSR: usize = 24;

    /// The state after FNINIT with default SSE control.
    pub const fn reset() -> Self {
        let mut fx = [0; 512];
        (fx[0], fx[1]) = (0x7f, 0x03);
        (fx[Self::MXCSR], fx[Self::MXCSR + 1]) = (0x80, 0x1f);
        Self(fx)
    }

    fn mxcsr(&self) -> u32 {
        let byte = |at| u32::from(self.0[Self::MXCSR + at]) << (8 * at);
        byte(0) | byte(1) | byte(2) | byte(3)
    }
}

/// Everything a virtual CPU consists of. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
pub struct VcpuState {
    /// x87, MMX and SSE registers.
    pub fx: Fx,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The flags.
    pub rflags: u64,
    /// Control registers. CR8 is the task priority class, 0 to 15.
    pub cr0: u64,
    /// Page fault address.
    pub cr2: u64,
    /// The top page table.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority class.
    pub cr8: u64,
    /// Breakpoint addresses DR0 to DR3.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// EFER as the guest sees it: never SVME.
    pub efer: u64,
    /// ES.
    pub es: Segment,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// FS; its base is the MSR FS_BASE.
    pub fs: Segment,
    /// GS; its base is the MSR GS_BASE.
    pub gs: Segment,
    /// GDTR.
    pub gdtr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR.
    pub idtr: Segment,
    /// TR.
    pub tr: Segment,
    /// MSR STAR.
    pub star: u64,
    /// MSR LSTAR.
    pub lstar: u64,
    /// MSR CSTAR.
    pub cstar: u64,
    /// MSR SFMASK.
    pub sfmask: u64,
    /// MSR KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// MSR SYSENTER_CS.
    pub sysenter_cs: u64,
    /// MSR SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// MSR SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// MSR PAT.
    pub pat: u64,
    /// The guest's time stamp counter when it last exited.
    pub tsc: u64,
    /// What is delivered at the next entry.
    pub pending: Pending,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// 1 in the shadow of STI or MOV SS: no interrupt before the next instruction.
    pub interrupt_shadow: u8,
    /// 1 while a HLT waits for an interrupt.
    pub halted: u8,
    reserved: [u8; 5],
}

const _: () = assert!(size_of::<VcpuState>() == 1008);

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
const CR0_PE: u64 = 1 << 0;
/// CR0.NW.
const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
const CR0_CD: u64 = 1 << 30;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
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
const RFLAGS_ONE: u64 = 1 << 1;
/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.VM.
const RFLAGS_VM: u64 = 1 << 17;
/// The value of PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl VcpuState {
    /// The state in which a PVH loader starts a guest: 32-bit protected mode with
    /// flat segments, paging off, EBX pointing to the start information. Xen's
    /// `docs/misc/pvh.pandoc`.
    pub fn pvh(entry: u32, start_info: u32) -> Self {
        let code = Segment::flat(0x8, 0xc9b);
        let data = Segment::flat(0x10, 0xc93);
        let table = Segment {
            limit: 0xffff,
            ..Segment::default()
        };
        let task = Segment {
            attributes: 0x8b,
            limit: 0x67,
            ..Segment::default()
        };
        let ldt = Segment {
            attributes: 0x82,
            limit: 0xffff,
            ..Segment::default()
        };
        let mut gpr = [0; 16];
        gpr[gpr::RBX] = u64::from(start_info);
        Self {
            fx: Fx::reset(),
            gpr,
            rip: u64::from(entry),
            rflags: RFLAGS_ONE,
            cr0: CR0_PE | 1 << 4,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            efer: 0,
            es: data,
            cs: code,
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            gdtr: table,
            ldtr: ldt,
            idtr: table,
            tr: task,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: PAT_RESET,
            tsc: 0,
            pending: Pending::NONE,
            cpl: 0,
            interrupt_shadow: 0,
            halted: 0,
            reserved: [0; 5],
        }
    }

    /// Goes on at `next_rip` after an instruction was carried out for the guest;
    /// an interrupt shadow ends with it.
    pub fn advance_to(&mut self, next_rip: u64) {
        self.rip = next_rip;
        self.interrupt_shadow = 0;
    }

    /// Whether the guest could take an external interrupt at this instruction.
    pub fn accepts_interrupts(&self) -> bool {
        self.rflags & RFLAGS_IF != 0 && self.interrupt_shadow == 0 && self.pending.is_none()
    }

    /// Whether the CPU executes 64-bit code.
    pub fn is_64_bit(&self) -> bool {
        self.efer & EFER_LMA != 0 && self.cs.attributes & Segment::LONG != 0
    }

    /// Whether paging is on.
    pub fn is_paging(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }

    /// The low 32 bits of a register.
    pub fn gpr32(&self, index: usize) -> u32 {
        self.gpr.get(index).copied().unwrap_or(0) as u32
    }

    /// EDX:EAX, as RDMSR and WRMSR use it.
    pub fn edx_eax(&self) -> u64 {
        u64::from(self.gpr32(gpr::RDX)) << 32 | u64::from(self.gpr32(gpr::RAX))
    }

    /// Sets EDX:EAX, clearing the upper halves.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.gpr[gpr::RDX] = value >> 32;
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
        legal(self.halted < 2, "the halt state")?;
        legal(self.reserved == [0; 5], "the reserved bytes")?;
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

    #[test]
    fn the_start_state_is_valid() {
        assert_eq!(VcpuState::pvh(0x10_0000, 0x9000).validate(), Ok(()));
    }

    #[test]
    fn a_state_survives_the_way_through_bytes() {
        let mut state = VcpuState::pvh(0x10_0000, 0x9000);
        state.pending = Pending::exception(14, Some(2));
        state.gpr[15] = 0x1234_5678_9abc_def0;
        assert_eq!(VcpuState::read_from_bytes(state.as_bytes()), Ok(state));
    }

    #[test]
    fn states_that_hardware_would_refuse_are_named() {
        type Change = fn(&mut VcpuState);
        let changes: [(&str, Change); 12] = [
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

    #[test]
    fn skipping_an_instruction_ends_the_interrupt_shadow() {
        let mut state = VcpuState::pvh(0, 0);
        state.rflags |= RFLAGS_IF;
        state.interrupt_shadow = 1;
        assert!(!state.accepts_interrupts());
        state.advance_to(1);
        assert!(state.accepts_interrupts());
        assert_eq!(state.rip, 1);
    }
}
