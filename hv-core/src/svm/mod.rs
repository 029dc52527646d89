//! Virtual CPUs on AMD's Secure Virtual Machine extension.
//!
//! AMD64 Architecture Programmer's Manual volume 2, chapter 15. A [`SvmVcpu`]
//! copies a [`VcpuState`] into the VMCB before each entry and back after each
//! exit, so no exit handler depends on SVM. The copy is some hundred moves beside
//! a switch of more than a thousand cycles.
//!
//! Guests have no nested SVM, no XSAVE, no RDTSCP and no MONITOR; their
//! instructions are intercepted and answered with #UD.

mod hw;
mod permissions;
mod support;
#[cfg(test)]
mod tests;
mod vmcb;

pub use support::{Support, SvmError, check_support};

use crate::memory::{FramePool, PhysMemory};
use crate::vcpu::gpr::{RAX, RSP};
use crate::vcpu::{Entry, Exit, Fx, Intercepted, IoAccess, NestedFault, Pending, Vcpu, VcpuState};
use crate::{Gpa, Hpa, PAGE_SIZE};
use hw::VmcbFrame;
use vmcb::{Vmcb, exit_code, intercept_exception, intercept1, intercept2, tlb_control, vintr};

/// The frames that [`IdleVcpu::prepare`] takes: host save area, two VMCBs, the I/O
/// permission map (3) and the MSR permission map (2).
pub const FRAMES_NEEDED: u64 = 8;

/// The guest's address space identifier; 0 is the host's.
const GUEST_ASID: u32 = 1;
/// Valid bit of EVENTINJ and EXITINTINFO.
const EVENT_VALID: u64 = 1 << 31;
/// Error code valid bit of EVENTINJ and EXITINTINFO.
const EVENT_HAS_CODE: u64 = 1 << 11;

/// The structures of a virtual CPU, not yet on a physical one.
pub struct IdleVcpu<'m> {
    guest: VmcbFrame<'m>,
    /// Where VMSAVE keeps the host's state.
    host: VmcbFrame<'m>,
    /// Where VMRUN keeps the rest of it.
    host_save: Hpa,
    saves_next_rip: bool,
}

impl<'m> IdleVcpu<'m> {
    /// Checks support, and prepares a CPU whose second stage is `nested_root`. Needs
    /// privilege level 0 and memory identity mapped. All CPUs of a machine are taken
    /// to be alike.
    pub fn prepare<M: PhysMemory>(
        mem: &'m M,
        pool: &mut FramePool,
        nested_root: Hpa,
    ) -> Result<Self, SvmError> {
        let support = check_support()?;
        let host_save = take_contiguous(mem, pool, 1)?;
        let mut guest = vmcb_frame(mem, pool)?;
        let host = vmcb_frame(mem, pool)?;
        let iopm = take_contiguous(mem, pool, permissions::IO_FRAMES)?;
        permissions::intercept_all(mem, iopm, permissions::IO_FRAMES);
        let msrpm = take_contiguous(mem, pool, permissions::MSR_FRAMES)?;
        permissions::intercept_all(mem, msrpm, permissions::MSR_FRAMES);
        permissions::allow_own_msrs(mem, msrpm);
        prepare(guest.get(), nested_root, iopm, msrpm);
        Ok(Self {
            guest,
            host,
            host_save,
            saves_next_rip: support.saves_next_rip,
        })
    }

    /// Turns SVM on on this physical CPU, which is the one that runs the guest from
    /// now on. Interrupts are disabled, or no other virtual CPU is on it.
    pub fn occupy_this_cpu(self) -> SvmVcpu<'m> {
        hw::enable(self.host_save);
        SvmVcpu {
            structures: self,
            host_fx: Fx::reset(),
        }
    }
}

/// A virtual CPU that runs on this physical CPU with SVM.
pub struct SvmVcpu<'m> {
    structures: IdleVcpu<'m>,
    host_fx: Fx,
}

impl Vcpu for SvmVcpu<'_> {
    fn run(&mut self, state: &mut VcpuState, entry: Entry) -> Exit {
        let IdleVcpu {
            guest,
            host,
            saves_next_rip,
            ..
        } = &mut self.structures;
        load(guest.get(), state, entry);
        hw::switch(state, &mut self.host_fx, guest, host);
        let vmcb = guest.get();
        // VMEXIT_INVALID is -1; some implementations report only 32 bits of it,
        // and overwrite the save area with host state. So nothing is taken over.
        if vmcb.control.exit_code as u32 == u32::MAX {
            return Exit::InvalidState;
        }
        store(vmcb, state);
        state.tsc = hw::tsc().wrapping_add(entry.tsc_offset);
        let exit = decode(vmcb, *saves_next_rip);
        if exit == Exit::HostInterrupt {
            hw::take_interrupt();
        }
        exit
    }

    fn host_tsc(&self) -> u64 {
        hw::tsc()
    }
}

/// Takes `count` frames in one piece.
fn take_contiguous<M: PhysMemory>(
    mem: &M,
    pool: &mut FramePool,
    count: u64,
) -> Result<Hpa, SvmError> {
    let missing = SvmError::OutOfFrames { needed: count };
    let first = pool.take(mem).ok_or(missing)?;
    for index in 1..count {
        let next = pool.take(mem).ok_or(missing)?;
        if Some(next) != first.checked_add(index * PAGE_SIZE) {
            return Err(missing);
        }
    }
    Ok(first)
}

fn vmcb_frame<'m, M: PhysMemory>(
    mem: &'m M,
    pool: &mut FramePool,
) -> Result<VmcbFrame<'m>, SvmError> {
    let hpa = take_contiguous(mem, pool, 1)?;
    let missing = SvmError::OutOfFrames { needed: 1 };
    Ok(VmcbFrame::new(mem.frame(hpa).ok_or(missing)?, hpa))
}

/// Fills in what stays the same for the life of the guest.
fn prepare(vmcb: &mut Vmcb, nested_root: Hpa, iopm: Hpa, msrpm: Hpa) {
    let control = &mut vmcb.control;
    // A guest can arrange that delivering one of these raises it again. The CPU
    // would go on for ever and take no interrupt meanwhile (CVE-2015-5307,
    // CVE-2015-8104); with an exit each time, the host gets its turn.
    control.intercept_exceptions =
        intercept_exception::DEBUG | intercept_exception::ALIGNMENT_CHECK;
    control.intercept1 = intercept1::INTR
        | intercept1::NMI
        | intercept1::INIT
        | intercept1::RDPMC
        | intercept1::CPUID
        | intercept1::INVD
        | intercept1::HLT
        | intercept1::INVLPGA
        | intercept1::IOIO
        | intercept1::MSR
        | intercept1::SHUTDOWN;
    // VMRUN must be intercepted, or VMRUN itself refuses the block.
    control.intercept2 = intercept2::VMRUN
        | intercept2::VMMCALL
        | intercept2::VMLOAD
        | intercept2::VMSAVE
        | intercept2::STGI
        | intercept2::CLGI
        | intercept2::SKINIT
        | intercept2::RDTSCP
        | intercept2::WBINVD
        | intercept2::MONITOR
        | intercept2::MWAIT
        | intercept2::XSETBV;
    control.iopm_base = iopm.raw();
    control.msrpm_base = msrpm.raw();
    control.asid = GUEST_ASID;
    control.nested_control = 1;
    control.nested_cr3 = nested_root.raw();
}

/// Copies the state into the block, and asks for what `entry` says. Everything the
/// last exit left in the control area is overwritten.
fn load(vmcb: &mut Vmcb, state: &VcpuState, entry: Entry) {
    let control = &mut vmcb.control;
    control.tlb_control = if entry.flush_tlb {
        tlb_control::FLUSH_ALL
    } else {
        tlb_control::NOTHING
    };
    control.vintr = vintr::MASKING | (state.cr8 & vintr::TPR);
    control.intercept1 &= !(intercept1::VINTR | intercept1::IRET);
    if state.nmi_masked != 0 {
        control.intercept1 |= intercept1::IRET;
    }
    if state.pending.is_interrupt() {
        // Taken by the guest's CPU itself, before its first instruction. EVENTINJ is
        // not used for interrupts: QEMU 10 keeps the vector as one of a pending
        // exception, and delivers it again, IF or not, if its execution loop is
        // left before the next exit. The handler's frame is then lost.
        control.vintr |= vintr::request(state.pending.vector());
    } else if entry.interrupt_window {
        // One that is intercepted the moment it could be taken. It waits for the
        // exit that says whether the one before was taken: of two at once, the
        // other has the lower priority and has to wait for the first's end anyway.
        control.vintr |= vintr::request(0);
        control.intercept1 |= intercept1::VINTR;
    }
    control.interrupt_shadow = u64::from(state.interrupt_shadow);
    control.event_injection = encode_exception(&state.pending);
    control.clean = 0;
    control.tsc_offset = entry.tsc_offset;

    let save = &mut vmcb.save;
    save.es = state.es;
    save.cs = state.cs;
    save.ss = state.ss;
    save.ds = state.ds;
    save.fs = state.fs;
    save.gs = state.gs;
    save.gdtr = state.gdtr;
    save.ldtr = state.ldtr;
    save.idtr = state.idtr;
    save.tr = state.tr;
    save.cpl = state.cpl;
    // VMRUN refuses a guest without SVME; reads of EFER are intercepted.
    save.efer = state.efer | hw::EFER_SVME;
    save.cr4 = state.cr4;
    save.cr3 = state.cr3;
    save.cr2 = state.cr2;
    save.cr0 = state.cr0;
    save.dr7 = state.dr7;
    save.dr6 = state.dr6;
    save.rflags = state.rflags;
    save.rip = state.rip;
    save.rsp = state.gpr[RSP];
    save.rax = state.gpr[RAX];
    save.star = state.star;
    save.lstar = state.lstar;
    save.cstar = state.cstar;
    save.sfmask = state.sfmask;
    save.kernel_gs_base = state.kernel_gs_base;
    save.sysenter_cs = state.sysenter_cs;
    save.sysenter_esp = state.sysenter_esp;
    save.sysenter_eip = state.sysenter_eip;
    save.guest_pat = state.pat;
}

/// The inverse of [`load`].
fn store(vmcb: &Vmcb, state: &mut VcpuState) {
    let (control, save) = (&vmcb.control, &vmcb.save);
    state.cr8 = control.vintr & vintr::TPR;
    state.interrupt_shadow = (control.interrupt_shadow & 1) as u8;
    state.pending = undelivered_event(vmcb, state.pending);

    state.es = save.es;
    state.cs = save.cs;
    state.ss = save.ss;
    state.ds = save.ds;
    state.fs = save.fs;
    state.gs = save.gs;
    state.gdtr = save.gdtr;
    state.ldtr = save.ldtr;
    state.idtr = save.idtr;
    state.tr = save.tr;
    state.cpl = save.cpl;
    state.efer = save.efer & !hw::EFER_SVME;
    state.cr4 = save.cr4;
    state.cr3 = save.cr3;
    state.cr2 = save.cr2;
    state.cr0 = save.cr0;
    state.dr7 = save.dr7;
    state.dr6 = save.dr6;
    state.rflags = save.rflags;
    state.rip = save.rip;
    state.gpr[RSP] = save.rsp;
    state.gpr[RAX] = save.rax;
    state.star = save.star;
    state.lstar = save.lstar;
    state.cstar = save.cstar;
    state.sfmask = save.sfmask;
    state.kernel_gs_base = save.kernel_gs_base;
    state.sysenter_cs = save.sysenter_cs;
    state.sysenter_esp = save.sysenter_esp;
    state.sysenter_eip = save.sysenter_eip;
    state.pat = save.guest_pat;
}

/// EVENTINJ, AMD64 APM volume 2, figure 15-4, for an exception or an NMI.
fn encode_exception(event: &Pending) -> u64 {
    if event.is_none() || event.is_interrupt() {
        return 0;
    }
    let kind = if event.is_nmi() { 2 } else { 3 };
    let code = event
        .error_code()
        .map_or(0, |code| EVENT_HAS_CODE | u64::from(code) << 32);
    EVENT_VALID | code | kind << 8 | u64::from(event.vector())
}

/// The event to deliver again: an interrupt that the guest has not taken, or the
/// event whose delivery the exit interrupted.
fn undelivered_event(vmcb: &Vmcb, entered_with: Pending) -> Pending {
    let control = &vmcb.control;
    let is_requested = control.vintr & vintr::IRQ != 0;
    if entered_with.is_interrupt() && is_requested {
        entered_with
    } else {
        decode_event(control.exit_int_info)
    }
}

/// EXITINTINFO, laid out like EVENTINJ. An event that an instruction of the guest
/// raised (INT n, INT3, INTO) is not delivered again: RIP still points to that
/// instruction, which will raise it.
fn decode_event(info: u64) -> Pending {
    if info & EVENT_VALID == 0 {
        return Pending::NONE;
    }
    let vector = info as u8;
    let code = (info & EVENT_HAS_CODE != 0).then_some((info >> 32) as u32);
    match (info >> 8 & 7, vector) {
        (0, _) => Pending::interrupt(vector),
        (2, _) => Pending::nmi(),
        (3, 3 | 4) => Pending::NONE,
        (3, 0..=31) => Pending::exception(vector, code),
        _ => Pending::NONE,
    }
}

/// What the exit code and its information say.
fn decode(vmcb: &Vmcb, saves_next_rip: bool) -> Exit {
    let control = &vmcb.control;
    let rip = vmcb.save.rip;
    let instruction = |what, length: u64| Exit::Instruction {
        what,
        next_rip: if saves_next_rip && control.next_rip != 0 {
            control.next_rip
        } else {
            rip.wrapping_add(length)
        },
    };
    match control.exit_code {
        // An NMI is the host's affair too: its handler runs once GIF is set.
        exit_code::INTR | exit_code::NMI => Exit::HostInterrupt,
        exit_code::VINTR => Exit::InterruptWindow,
        // DR6 says already what it is about.
        exit_code::DEBUG => Exit::Exception(Pending::exception(1, None)),
        exit_code::ALIGNMENT_CHECK => Exit::Exception(Pending::exception(17, Some(0))),
        exit_code::IRET => Exit::InterruptReturn,
        exit_code::CPUID => instruction(Intercepted::Cpuid, 2),
        exit_code::HLT => instruction(Intercepted::Halt, 1),
        exit_code::INVD | exit_code::WBINVD => instruction(Intercepted::WriteBack, 2),
        exit_code::IOIO => Exit::Instruction {
            what: Intercepted::Io(decode_io(control.exit_info1)),
            next_rip: control.exit_info2,
        },
        exit_code::MSR if control.exit_info1 == 0 => instruction(Intercepted::ReadMsr, 2),
        exit_code::MSR => instruction(Intercepted::WriteMsr, 2),
        exit_code::RDPMC
        | exit_code::INVLPGA
        | exit_code::VMRUN..=exit_code::RDTSCP
        | exit_code::MONITOR
        | exit_code::MWAIT
        | exit_code::XSETBV => instruction(Intercepted::Missing, 0),
        exit_code::SHUTDOWN => Exit::Shutdown,
        exit_code::NPF => Exit::NestedFault(NestedFault {
            gpa: Gpa::new(control.exit_info2),
            write: control.exit_info1 & 1 << 1 != 0,
            fetch: control.exit_info1 & 1 << 4 != 0,
            table_walk: control.exit_info1 & 1 << 33 != 0,
            in_delivery: control.exit_int_info & EVENT_VALID != 0,
        }),
        other => Exit::Unexpected(other),
    }
}

/// EXITINFO1 of an IOIO exit, AMD64 APM volume 2, figure 15-2.
fn decode_io(info: u64) -> IoAccess {
    IoAccess {
        port: (info >> 16) as u16,
        width: (info >> 4 & 7) as u8,
        is_in: info & 1 != 0,
        is_string: info & 1 << 2 != 0,
    }
}
