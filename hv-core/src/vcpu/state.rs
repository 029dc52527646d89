//! The state of one virtual CPU: what an exit handler works on and what migrates.

use super::parts::{Fx, Pending, Segment};
use super::validate::{CR0_PE, CR0_PG, EFER_LMA, RFLAGS_IF, RFLAGS_ONE};
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
    /// Control register 0.
    pub cr0: u64,
    /// Page fault address.
    pub cr2: u64,
    /// The top page table.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority class, 0 to 15.
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
    /// 1 while a HLT waits for an interrupt, [`WAITS_FOR_STARTUP`](Self::WAITS_FOR_STARTUP)
    /// after INIT.
    pub halted: u8,
    /// 1 from the delivery of an NMI, which may still be pending, until the guest is about
    /// to execute IRET: no other NMI before that.
    pub nmi_masked: u8,
    pub(super) reserved: [u8; 4],
}

const _: () = assert!(size_of::<VcpuState>() == 1008);

/// CR0.ET, which is always set.
const CR0_ET: u64 = 1 << 4;
/// The value of PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl VcpuState {
    /// Of [`VcpuState::halted`]: nothing but a start-up interrupt makes it run.
    pub const WAITS_FOR_STARTUP: u8 = 2;

    /// The state after INIT of a CPU that is not the boot CPU: it waits for a start-up
    /// (AMD64 APM volume 2, table 14-1 and section 16.5). The counter goes on.
    pub fn after_init(tsc: u64) -> Self {
        let data = Segment::real_mode(0, Segment::REAL_MODE_DATA);
        Self {
            fx: Fx::reset(),
            cr0: CR0_ET,
            efer: 0,
            es: data,
            cs: Segment::real_mode(0, Segment::REAL_MODE_CODE),
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            tsc,
            halted: Self::WAITS_FOR_STARTUP,
            ..Self::pvh(0, 0)
        }
    }

    /// A start-up interrupt: real mode at the start of the 4 KiB `page`.
    pub fn start_at(&mut self, page: u8) {
        self.cs = Segment::real_mode(u16::from(page) << 8, Segment::REAL_MODE_CODE);
        self.rip = 0;
        self.halted = 0;
    }

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
            cr0: CR0_PE | CR0_ET,
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
            nmi_masked: 0,
            reserved: [0; 4],
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

    /// Whether NMIs are held back until the guest executes IRET, or is started.
    pub fn masks_nmi(&self) -> bool {
        self.nmi_masked != 0 || self.halted == Self::WAITS_FOR_STARTUP
    }

    /// Whether the guest could take an NMI at this instruction.
    pub fn accepts_nmi(&self) -> bool {
        !self.masks_nmi() && self.interrupt_shadow == 0 && self.pending.is_none()
    }

    /// The guest takes an NMI, which it accepts, at the next entry.
    pub fn begin_nmi(&mut self) {
        self.pending = Pending::nmi();
        self.nmi_masked = 1;
        self.halted = 0;
    }

    /// The guest is about to execute IRET: others may follow, but not before it is done.
    pub fn end_nmi(&mut self) {
        self.nmi_masked = 0;
        self.interrupt_shadow = 1;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_way_through_bytes() {
        let mut state = VcpuState::pvh(0x10_0000, 0x9000);
        state.pending = Pending::exception(14, Some(2));
        state.gpr[15] = 0x1234_5678_9abc_def0;
        assert_eq!(VcpuState::read_from_bytes(state.as_bytes()), Ok(state));
    }

    #[test]
    fn a_cpu_starts_in_real_mode_at_its_page() {
        let mut state = VcpuState::after_init(7);
        assert_eq!(state.validate(), Ok(()));
        assert_eq!((state.halted, state.tsc), (VcpuState::WAITS_FOR_STARTUP, 7));
        state.start_at(0x9a);
        assert_eq!(state.validate(), Ok(()));
        assert_eq!((state.cs.selector, state.cs.base), (0x9a00, 0x9_a000));
        assert_eq!((state.halted, state.rip, state.cr0 & CR0_PE), (0, 0, 0));
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
