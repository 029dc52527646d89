//! The virtual machine control block.
//!
//! AMD64 Architecture Programmer's Manual volume 2, appendix B: control area in
//! table B-1, save area in table B-2. Fields that this hypervisor does not use are
//! kept as reserved bytes of the right size.

use crate::vcpu::Segment;

/// Intercepts of the first miscellaneous word (offset 0x00c).
pub(super) mod intercept1 {
    pub(in crate::svm) const INTR: u32 = 1 << 0;
    pub(in crate::svm) const NMI: u32 = 1 << 1;
    pub(in crate::svm) const INIT: u32 = 1 << 3;
    pub(in crate::svm) const VINTR: u32 = 1 << 4;
    pub(in crate::svm) const RDPMC: u32 = 1 << 15;
    pub(in crate::svm) const CPUID: u32 = 1 << 18;
    pub(in crate::svm) const IRET: u32 = 1 << 20;
    pub(in crate::svm) const INVD: u32 = 1 << 22;
    pub(in crate::svm) const HLT: u32 = 1 << 24;
    pub(in crate::svm) const INVLPGA: u32 = 1 << 26;
    pub(in crate::svm) const IOIO: u32 = 1 << 27;
    pub(in crate::svm) const MSR: u32 = 1 << 28;
    pub(in crate::svm) const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of exceptions, a bit a vector (offset 0x008).
pub(super) mod intercept_exception {
    pub(in crate::svm) const DEBUG: u32 = 1 << 1;
    pub(in crate::svm) const ALIGNMENT_CHECK: u32 = 1 << 17;
}

/// Intercepts of the second miscellaneous word (offset 0x010).
pub(super) mod intercept2 {
    pub(in crate::svm) const VMRUN: u32 = 1 << 0;
    pub(in crate::svm) const VMMCALL: u32 = 1 << 1;
    pub(in crate::svm) const VMLOAD: u32 = 1 << 2;
    pub(in crate::svm) const VMSAVE: u32 = 1 << 3;
    pub(in crate::svm) const STGI: u32 = 1 << 4;
    pub(in crate::svm) const CLGI: u32 = 1 << 5;
    pub(in crate::svm) const SKINIT: u32 = 1 << 6;
    pub(in crate::svm) const RDTSCP: u32 = 1 << 7;
    pub(in crate::svm) const WBINVD: u32 = 1 << 9;
    pub(in crate::svm) const MONITOR: u32 = 1 << 10;
    pub(in crate::svm) const MWAIT: u32 = 1 << 11;
    pub(in crate::svm) const XSETBV: u32 = 1 << 13;
}

/// Bits of the virtual interrupt control word (offset 0x060).
pub(super) mod vintr {
    /// V_TPR: the guest's CR8.
    pub(in crate::svm) const TPR: u64 = 0xf;
    /// V_IRQ: a virtual interrupt is pending.
    pub(in crate::svm) const IRQ: u64 = 1 << 8;
    /// V_INTR_PRIO at its highest.
    pub(in crate::svm) const PRIORITY: u64 = 0xf << 16;
    /// V_IGN_TPR: regardless of V_TPR.
    pub(in crate::svm) const IGNORE_TPR: u64 = 1 << 20;
    /// V_INTR_MASKING: the guest's IF and CR8 govern virtual interrupts only.
    pub(in crate::svm) const MASKING: u64 = 1 << 24;

    /// A virtual interrupt of the highest priority; V_INTR_VECTOR is bits 39:32.
    pub(in crate::svm) const fn request(vector: u8) -> u64 {
        IRQ | PRIORITY | IGNORE_TPR | (vector as u64) << 32
    }
}

/// Values of TLB_CONTROL (offset 0x05c).
pub(super) mod tlb_control {
    /// Do nothing.
    pub(in crate::svm) const NOTHING: u8 = 0;
    /// Flush the entire TLB. Flushing one ASID is optional hardware; this is not.
    pub(in crate::svm) const FLUSH_ALL: u8 = 1;
}

/// Exit codes, table C-1.
pub(super) mod exit_code {
    /// Exception 0; the others follow.
    pub(in crate::svm) const EXCEPTION: u64 = 0x40;
    pub(in crate::svm) const DEBUG: u64 = EXCEPTION + 1;
    pub(in crate::svm) const ALIGNMENT_CHECK: u64 = EXCEPTION + 17;
    pub(in crate::svm) const INTR: u64 = 0x60;
    pub(in crate::svm) const NMI: u64 = 0x61;
    pub(in crate::svm) const VINTR: u64 = 0x64;
    pub(in crate::svm) const RDPMC: u64 = 0x6f;
    pub(in crate::svm) const CPUID: u64 = 0x72;
    pub(in crate::svm) const IRET: u64 = 0x74;
    pub(in crate::svm) const INVD: u64 = 0x76;
    pub(in crate::svm) const HLT: u64 = 0x78;
    pub(in crate::svm) const INVLPGA: u64 = 0x7a;
    pub(in crate::svm) const IOIO: u64 = 0x7b;
    pub(in crate::svm) const MSR: u64 = 0x7c;
    pub(in crate::svm) const SHUTDOWN: u64 = 0x7f;
    pub(in crate::svm) const VMRUN: u64 = 0x80;
    pub(in crate::svm) const RDTSCP: u64 = 0x87;
    pub(in crate::svm) const WBINVD: u64 = 0x89;
    pub(in crate::svm) const MONITOR: u64 = 0x8a;
    pub(in crate::svm) const MWAIT: u64 = 0x8b;
    pub(in crate::svm) const XSETBV: u64 = 0x8d;
    pub(in crate::svm) const NPF: u64 = 0x400;
}

/// Declares a field-by-field hardware structure together with a check of every
/// offset against the manual.
macro_rules! hardware_layout {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$doc:meta])* $offset:literal $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(zerocopy::FromBytes)]
        #[repr(C)]
        pub(super) struct $name { $($(#[$doc])* pub(super) $field: $type,)* }
        const _: () = { $(assert!(core::mem::offset_of!($name, $field) == $offset);)* };
    };
}

hardware_layout! {
    /// The whole block, one page.
    struct Vmcb {
        /// What to intercept, and why the guest exited.
        0x000 control: Control,
        /// The guest's registers.
        0x400 save: Save,
        /// Unused by this revision.
        0x678 tail: [u8; 0x988],
    }
}
const _: () = assert!(size_of::<Vmcb>() == 4096);

hardware_layout! {
    /// The control area.
    struct Control {
        /// Intercepts of control register reads and writes.
        0x000 intercept_cr: u32,
        /// Intercepts of debug register reads and writes.
        0x004 intercept_dr: u32,
        /// See [`intercept_exception`].
        0x008 intercept_exceptions: u32,
        /// See [`intercept1`].
        0x00c intercept1: u32,
        /// See [`intercept2`].
        0x010 intercept2: u32,
        /// Intercepts of newer instructions.
        0x014 intercept3: u32,
        /// Reserved, and pause filtering.
        0x018 reserved0: [u8; 0x28],
        /// Physical address of the I/O permission map, 12 KiB.
        0x040 iopm_base: u64,
        /// Physical address of the MSR permission map, 8 KiB.
        0x048 msrpm_base: u64,
        /// Added to the time stamp counter for the guest.
        0x050 tsc_offset: u64,
        /// Address space identifier, not 0.
        0x058 asid: u32,
        /// See [`tlb_control`].
        0x05c tlb_control: u8,
        /// Reserved.
        0x05d reserved1: [u8; 3],
        /// See [`vintr`].
        0x060 vintr: u64,
        /// Bit 0: the guest is in an interrupt shadow.
        0x068 interrupt_shadow: u64,
        /// Why the guest exited, see [`exit_code`].
        0x070 exit_code: u64,
        /// Depends on the exit code.
        0x078 exit_info1: u64,
        /// Depends on the exit code.
        0x080 exit_info2: u64,
        /// The event whose delivery the exit interrupted.
        0x088 exit_int_info: u64,
        /// Bit 0: nested paging.
        0x090 nested_control: u64,
        /// AVIC and encrypted guests, unused.
        0x098 reserved2: [u8; 0x10],
        /// The event to deliver at VMRUN.
        0x0a8 event_injection: u64,
        /// The top nested page table.
        0x0b0 nested_cr3: u64,
        /// Last branch records, unused.
        0x0b8 lbr_control: u64,
        /// Which cached parts are unchanged; 0: none.
        0x0c0 clean: u64,
        /// The next instruction, on hardware that saves it.
        0x0c8 next_rip: u64,
        /// Reserved.
        0x0d0 reserved3: [u8; 0x330],
    }
}

hardware_layout! {
    /// The state save area; offsets from its start.
    struct Save {
        /// ES.
        0x000 es: Segment,
        /// CS.
        0x010 cs: Segment,
        /// SS.
        0x020 ss: Segment,
        /// DS.
        0x030 ds: Segment,
        /// FS, moved by VMLOAD and VMSAVE.
        0x040 fs: Segment,
        /// GS, moved by VMLOAD and VMSAVE.
        0x050 gs: Segment,
        /// GDTR.
        0x060 gdtr: Segment,
        /// LDTR, moved by VMLOAD and VMSAVE.
        0x070 ldtr: Segment,
        /// IDTR.
        0x080 idtr: Segment,
        /// TR, moved by VMLOAD and VMSAVE.
        0x090 tr: Segment,
        /// Reserved.
        0x0a0 reserved0: [u8; 0x2b],
        /// Current privilege level.
        0x0cb cpl: u8,
        /// Reserved.
        0x0cc reserved1: u32,
        /// EFER, with SVME set.
        0x0d0 efer: u64,
        /// Reserved.
        0x0d8 reserved2: [u8; 0x70],
        /// CR4.
        0x148 cr4: u64,
        /// CR3.
        0x150 cr3: u64,
        /// CR0.
        0x158 cr0: u64,
        /// DR7.
        0x160 dr7: u64,
        /// DR6.
        0x168 dr6: u64,
        /// RFLAGS.
        0x170 rflags: u64,
        /// RIP.
        0x178 rip: u64,
        /// Reserved.
        0x180 reserved3: [u8; 0x58],
        /// RSP.
        0x1d8 rsp: u64,
        /// Shadow stacks, unused.
        0x1e0 reserved4: [u8; 0x18],
        /// RAX.
        0x1f8 rax: u64,
        /// MSR STAR, moved by VMLOAD and VMSAVE, as are the next seven.
        0x200 star: u64,
        /// MSR LSTAR.
        0x208 lstar: u64,
        /// MSR CSTAR.
        0x210 cstar: u64,
        /// MSR SFMASK.
        0x218 sfmask: u64,
        /// MSR KERNEL_GS_BASE.
        0x220 kernel_gs_base: u64,
        /// MSR SYSENTER_CS.
        0x228 sysenter_cs: u64,
        /// MSR SYSENTER_ESP.
        0x230 sysenter_esp: u64,
        /// MSR SYSENTER_EIP.
        0x238 sysenter_eip: u64,
        /// CR2.
        0x240 cr2: u64,
        /// Reserved.
        0x248 reserved5: [u8; 0x20],
        /// The guest's PAT, used with nested paging.
        0x268 guest_pat: u64,
        /// MSR DEBUGCTL.
        0x270 debug_control: u64,
    }
}
