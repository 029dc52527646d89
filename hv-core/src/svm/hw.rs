//! The instructions and the memory that SVM acts on. All of the unsafe code of the
//! world switch is here.
#![allow(unsafe_code)]

use super::vmcb::Vmcb;
use crate::Hpa;
use crate::memory::Frame;
use crate::vcpu::{Fx, VcpuState};
use core::arch::{naked_asm, x86_64::_rdtsc};
use x86_64::registers::model_specific::Msr;

/// MSR EFER.
const EFER: Msr = Msr::new(0xc000_0080);
/// EFER.SVME.
pub(super) const EFER_SVME: u64 = 1 << 12;
/// MSR VM_CR.
const VM_CR: Msr = Msr::new(0xc001_0114);
/// VM_CR.SVMDIS.
const SVMDIS: u64 = 1 << 4;
/// MSR VM_HSAVE_PA.
const VM_HSAVE_PA: Msr = Msr::new(0xc001_0117);

/// Whether firmware disabled SVM. Only on a CPU that has SVM.
pub(super) fn svm_is_disabled() -> bool {
    // SAFETY: every CPU with SVM has VM_CR; the caller asked CPUID first.
    unsafe { VM_CR.read() & SVMDIS != 0 }
}

/// Turns SVM on, with `host_save` for the state VMRUN saves.
pub(super) fn enable(host_save: Hpa) {
    let (mut efer, mut save_area) = (EFER, VM_HSAVE_PA);
    // SAFETY: SVME adds instructions and changes nothing else; support was
    // checked. The save area is a frame that nothing else uses.
    unsafe {
        efer.write(efer.read() | EFER_SVME);
        save_area.write(host_save.raw());
    }
}

/// The time stamp counter.
pub(super) fn tsc() -> u64 {
    // SAFETY: RDTSC has no effect on memory and is allowed at level 0.
    unsafe { _rdtsc() }
}

/// A VMCB in a frame of its own.
pub(super) struct VmcbFrame<'m> {
    frame: &'m Frame,
    hpa: Hpa,
}

impl<'m> VmcbFrame<'m> {
    /// The caller took `frame`, at `hpa`, from a pool: nobody else has it.
    pub(super) fn new(frame: &'m Frame, hpa: Hpa) -> Self {
        Self { frame, hpa }
    }

    pub(super) fn get(&mut self) -> &mut Vmcb {
        let block = self.frame.words().as_ptr().cast_mut().cast::<Vmcb>();
        // SAFETY: a frame has the size and more than the alignment of a VMCB, all
        // bit patterns are valid, its words are interior-mutable, and only this
        // value refers to it. Hardware writes it only inside `world_switch`,
        // which takes `&mut self` of this value through `switch`.
        unsafe { &mut *block }
    }
}

/// Where the switch finds everything; offsets are used in the assembly below.
#[repr(C)]
struct Switch {
    /// The guest's general registers. RAX and RSP are in the VMCB.
    gpr: *mut [u64; 16],
    guest_fx: *mut Fx,
    host_fx: *mut Fx,
    guest_vmcb: u64,
    host_vmcb: u64,
}

/// Runs the guest of `guest` until it exits. `host` is where VMSAVE keeps what
/// VMRUN does not save. Host interrupts are disabled on return: one that ended the
/// run is still pending, and [`take_interrupt`] lets it in.
pub(super) fn switch(
    state: &mut VcpuState,
    host_fx: &mut Fx,
    guest: &mut VmcbFrame<'_>,
    host: &mut VmcbFrame<'_>,
) {
    let mut switch = Switch {
        gpr: &raw mut state.gpr,
        guest_fx: &raw mut state.fx,
        host_fx,
        guest_vmcb: guest.hpa.raw(),
        host_vmcb: host.hpa.raw(),
    };
    load_debug_registers(&state.dr);
    // SAFETY: SVM is on (a `VmcbFrame` only exists inside a `SvmVcpu`, which turns
    // it on), the pointers come from exclusive references that outlive the call,
    // FX areas are 16-byte aligned, and the guest can reach only what its nested
    // tables map.
    unsafe { world_switch(&raw mut switch) };
    state.dr = read_debug_registers();
}

/// Lets the handler of the interrupt that ended the run take it.
pub(super) fn take_interrupt() {
    // SAFETY: the embedding image has an interrupt table whose handlers return with
    // all registers as they were. The NOP ends the shadow of STI.
    unsafe { core::arch::asm!("sti", "nop", "cli", options(nostack)) };
}

fn load_debug_registers(dr: &[u64; 4]) {
    // SAFETY: the hypervisor uses no breakpoints, and DR7 of the host is clear
    // (VMEXIT sets it so): the values mean nothing outside the guest.
    unsafe {
        core::arch::asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) dr[0], in(reg) dr[1], in(reg) dr[2], in(reg) dr[3],
            options(nomem, nostack, preserves_flags),
        );
    }
}

fn read_debug_registers() -> [u64; 4] {
    let mut dr = [0; 4];
    // SAFETY: reading debug registers has no effect.
    unsafe {
        core::arch::asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr[0], out(reg) dr[1], out(reg) dr[2], out(reg) dr[3],
            options(nomem, nostack, preserves_flags),
        );
    }
    dr
}

/// AMD64 APM volume 2, section 15.5. RAX, RSP, RIP, RFLAGS, the control registers
/// and most segments are switched by VMRUN; FS, GS, TR, LDTR and the system call
/// MSRs by VMLOAD and VMSAVE; the rest here.
///
/// Interrupts: from CLGI to STGI nothing is delivered. IF is set inside, because
/// with V_INTR_MASKING the IF that VMRUN finds decides whether a physical
/// interrupt ends the run. It is cleared before STGI, so that no interrupt is ever
/// taken without the exit that reports it: one that arrives during another exit
/// stays pending and ends the next run before the guest's first instruction.
#[unsafe(naked)]
unsafe extern "sysv64" fn world_switch(switch: *mut Switch) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "clgi",
        "sti",
        "push rdi",
        // Host state out.
        "mov rax, [rdi + 16]",
        "fxsave64 [rax]",
        "mov rax, [rdi + 32]",
        "vmsave rax",
        // Guest state in.
        "mov rax, [rdi + 8]",
        "fxrstor64 [rax]",
        "mov rax, [rdi + 24]",
        "vmload rax",
        "mov rdi, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "vmrun rax",
        // RAX and RSP are the host's again. Guest state out; its RDI waits on the
        // stack while RDI points to the register file.
        "vmsave rax",
        "push rdi",
        "mov rax, [rsp + 8]",
        "mov rdi, [rax]",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pop qword ptr [rdi + 56]",
        "pop rdi",
        "mov rax, [rdi + 8]",
        "fxsave64 [rax]",
        // Host state in.
        "mov rax, [rdi + 32]",
        "vmload rax",
        "mov rax, [rdi + 16]",
        "fxrstor64 [rax]",
        "cld",
        "cli",
        "stgi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
