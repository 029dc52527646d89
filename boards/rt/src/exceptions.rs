//! Exceptions: none is expected, so each one prints what the CPU was doing and
//! ends the program.

use crate::debug_exit::{Exit, exit};
use crate::logger;
use log::error;
use x86_64::registers::control::Cr2;

/// The exceptions for which the CPU pushes an error code, one bit each.
pub(crate) const WITH_ERROR_CODE: u32 = 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 17
    | 1 << 21
    | 1 << 29
    | 1 << 30;

/// What the interrupt stubs and the CPU leave on the stack, lowest address first.
#[repr(C)]
pub(crate) struct Registers {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Reports an exception and ends the program.
pub(crate) extern "C" fn stop(registers: &Registers) -> ! {
    logger::rescue();
    let r = registers;
    let vector = r.vector as u8;
    error!(
        "exception {vector} ({}), error code {:#x}, at {:#x}",
        name(vector),
        r.error_code,
        r.rip
    );
    error!(
        "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        r.rax, r.rbx, r.rcx, r.rdx
    );
    error!(
        "rsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}",
        r.rsi, r.rdi, r.rbp, r.rsp
    );
    error!(
        "r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}",
        r.r8, r.r9, r.r10, r.r11
    );
    error!(
        "r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}",
        r.r12, r.r13, r.r14, r.r15
    );
    error!(
        "cr2 {:016x} cs {:#x} ss {:#x} rflags {:#x}",
        Cr2::read_raw(),
        r.cs,
        r.ss,
        r.rflags
    );
    exit(Exit::Failure)
}

fn name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid task state segment",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating point",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating point",
        29 => "VMM communication",
        30 => "security",
        _ => "other",
    }
}
