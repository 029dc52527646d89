//! Runs code one instruction at a time and shows each to the counter.
//!
//! With the trap flag set, the CPU raises a debug exception after every
//! instruction (AMD APM volume 2, section 13.1.4 "Single Stepping"): the handler
//! finds the registers as the next instruction will.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};
use spin::Mutex;
use strandline_bench::tally::{Counter, MAX_LENGTH, Registers, Span, Tally};
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::structures::DescriptorTablePointer;

/// Of the debug exception.
const VECTOR: usize = 1;
const VECTORS: usize = 256;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

static COUNTER: Mutex<Counter> = Mutex::new(Counter::new());
static TABLE: Mutex<[u128; VECTORS]> = Mutex::new([0; VECTORS]);

/// Does `act` one instruction at a time, and returns what its instructions did,
/// a handful included by which stepping is turned on and off.
pub(crate) fn through<T>(tables: Span, registers: Span, act: impl FnOnce() -> T) -> (T, Tally) {
    COUNTER.lock().restart(tables, registers);
    set_trap_flag(true);
    let value = act();
    set_trap_flag(false);
    (value, COUNTER.lock().tally())
}

/// Makes the debug exception ours: the interrupt table in force is copied, and the
/// copy with our gate is loaded.
pub(crate) fn prepare() {
    let current = sidt();
    let mut table = TABLE.lock();
    // SAFETY: the table in force has 256 gates of 16 bytes and is never changed.
    *table = unsafe { *current.base.as_ptr() };
    let handler = debug_exception as *const () as u64;
    // Selector, stack and kind stay those of the gate that is replaced.
    const OFFSET: u128 = ((1 << 48) - 1) << 48 | 0xffff;
    let offset = u128::from(handler & 0xffff) | u128::from(handler >> 16) << 48;
    table[VECTOR] = table[VECTOR] & !OFFSET | offset;
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(&*table) - 1) as u16,
        base: VirtAddr::from_ptr(&raw const *table),
    };
    // SAFETY: a static table with the gates that were in force, and one for a
    // handler that preserves every register.
    unsafe { lidt(&pointer) };
}

/// Inlined nowhere, so that what is stepped through is the same in every caller.
#[inline(never)]
fn set_trap_flag(on: bool) {
    let flag = if on { TRAP_FLAG } else { 0 };
    // SAFETY: changes RFLAGS.TF only, and its exception has a handler; the stack is
    // balanced again at the end.
    unsafe {
        asm!(
            "pushfq",
            "and qword ptr [rsp], {clear}",
            "or qword ptr [rsp], {flag}",
            "popfq",
            clear = const !TRAP_FLAG as i32,
            flag = in(reg) flag,
        );
    }
}

/// What [`debug_exception`] leaves on the stack, lowest address first.
#[repr(C)]
struct Stacked {
    /// R15 down to RAX, RSP left out.
    general: [u64; 15],
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Everything is saved, the SSE state too: the handler is ordinary code.
#[unsafe(naked)]
extern "C" fn debug_exception() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rbx",
        "push rbp",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rdi, rsp",
        "mov rbx, rsp",
        "sub rsp, 512",
        "and rsp, -16",
        "fxsave64 [rsp]",
        "cld",
        "call {see}",
        "fxrstor64 [rsp]",
        "mov rsp, rbx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "iretq",
        see = sym see,
    )
}

extern "C" fn see(stacked: &Stacked) {
    let [
        r15,
        r14,
        r13,
        r12,
        r11,
        r10,
        r9,
        r8,
        rdi,
        rsi,
        rbp,
        rbx,
        rdx,
        rcx,
        rax,
    ] = stacked.general;
    let registers = Registers {
        general: [
            rax,
            rcx,
            rdx,
            rbx,
            stacked.rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ],
        rip: stacked.rip,
    };
    // SAFETY: the code of the image, which is mapped and has more than 15 bytes
    // after any instruction of its own.
    let bytes = unsafe { *(stacked.rip as *const [u8; MAX_LENGTH]) };
    // Held by nobody: whoever takes it does so with the trap flag clear.
    if let Some(mut counter) = COUNTER.try_lock() {
        counter.see(&bytes, &registers);
    }
}
