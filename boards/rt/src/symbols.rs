//! Symbols that compiled Rust code refers to and that no library supplies here.
//!
//! The memory functions are naked, so that the compiler cannot recognise what
//! they do and turn them into calls to themselves.
#![allow(unsafe_code)]

use core::arch::naked_asm;

/// Referred to by the precompiled core library. Never called: panics abort.
// SAFETY: the language item's symbol, defined nowhere else.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As in C.
// SAFETY: this symbol has the meaning C gives it, here and in the functions below.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    naked_asm!("mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret")
}

/// As in C.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        // Backwards only if `to` lies within `from..from + count`.
        "mov rdx, rdi",
        "sub rdx, rsi",
        "cmp rdx, rcx",
        "jb 2f",
        "rep movsb",
        "ret",
        "2:",
        "lea rdi, [rdi + rcx - 1]",
        "lea rsi, [rsi + rcx - 1]",
        "std",
        "rep movsb",
        "cld",
        "ret",
    )
}

/// As in C.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "mov eax, esi",
        "mov rcx, rdx",
        "rep stosb",
        "mov rax, r8",
        "ret",
    )
}

/// As in C.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    naked_asm!(
        "mov rcx, rdx",
        "xor eax, eax",
        // With a count of 0 the flags stay as `cmp` leaves them: equal.
        "cmp eax, eax",
        "repe cmpsb",
        "je 2f",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2:",
        "ret",
    )
}

/// As in C.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    naked_asm!("jmp {}", sym memcmp)
}

/// As in C.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    naked_asm!(
        "xor eax, eax",
        "2:",
        "cmp byte ptr [rdi + rax], 0",
        "je 3f",
        "inc rax",
        "jmp 2b",
        "3:",
        "ret",
    )
}
