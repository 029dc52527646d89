//! The way of another CPU from real mode to Rust.
//!
//! ```text
//!  start-up interrupt --> 8000h, a copy of the code below: 16 bits
//!     -> protected mode in the image -> long mode on the boot CPU's tables
//!     -> start_other: segments, interrupt table -> the function given to start
//! ```
#![allow(unsafe_code)]

use super::StartError;
use crate::apic::LocalApic;
use crate::boot_info::RegionKind;
use crate::entry::{CR0, CR4, EFER};
use crate::physical::PhysRange;
use crate::{BootInfo, interrupts, paging, segments, stacks};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

/// Where the CPU starts: any page below 640 KiB that is memory would do. The boot
/// loader's start information, which was copied, is all that can be there.
const PAGE: u64 = 0x8000;
const PAGE_BYTES: u64 = 4096;
/// How long the CPU may take to come.
const PATIENCE_US: u64 = 1_000_000;

/// The stacks' number of the CPU that is started.
const OTHER: usize = 1;

global_asm!(
    ".pushsection .text.trampoline, \"ax\", @progbits",
    ".code16",
    ".global other_cpu_code",
    ".global other_cpu_code_end",
    "other_cpu_code:",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    // LGDT, with a base of 32 bits, of what is so far behind the start.
    ".byte 0x66, 0x0f, 0x01, 0x16",
    ".word other_cpu_gdt_pointer - other_cpu_code",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    // A far jump to 32-bit code in the image.
    ".byte 0x66, 0xea",
    ".long other_cpu_protected",
    ".word 8",
    "other_cpu_gdt_pointer:",
    ".word 31",
    ".long other_cpu_gdt",
    "other_cpu_code_end:",
    "",
    ".code32",
    "other_cpu_protected:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    // Long mode, in the order of the boot CPU.
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, offset {level4}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "rdmsr",
    "or eax, {efer}",
    "wrmsr",
    "mov eax, {cr0}",
    "mov cr0, eax",
    // No stack yet: a far jump, not a return.
    ".byte 0xea",
    ".long other_cpu_long_mode",
    ".word 24",
    "",
    ".code64",
    "other_cpu_long_mode:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rsp, offset {stacks} + {stack_top}",
    "fninit",
    "push 0x1f80", // every SSE exception masked
    "ldmxcsr [rsp]",
    "add rsp, 8",
    "xor ebp, ebp",
    "call {start_other}",
    "ud2",
    "",
    // Null, 32-bit code, data, 64-bit code; used until `segments::load`.
    ".balign 8",
    "other_cpu_gdt:",
    ".quad 0",
    ".quad 0x00cf9a000000ffff",
    ".quad 0x00cf92000000ffff",
    ".quad 0x00209a0000000000",
    ".popsection",
    cr0 = const CR0,
    cr4 = const CR4,
    efer = const EFER,
    level4 = sym paging::LEVEL4,
    stacks = sym stacks::STACKS,
    stack_top = const stacks::STRIDE * OTHER + stacks::MAIN.top,
    start_other = sym start_other,
);

unsafe extern "C" {
    /// The first byte of what is copied.
    static other_cpu_code: u8;
    /// The first byte behind it.
    static other_cpu_code_end: u8;
}

/// What the CPU runs.
static MAIN: Once<fn() -> !> = Once::new();
/// The CPU is here.
static ARRIVED: AtomicBool = AtomicBool::new(false);

/// The first Rust code of another CPU.
extern "C" fn start_other() -> ! {
    segments::load(OTHER);
    interrupts::load();
    ARRIVED.store(true, Ordering::Release);
    match MAIN.get() {
        Some(main) => main(),
        None => crate::cpu::halt_forever(),
    }
}

/// Starts the CPU with the APIC id `id`, which runs `main` from then on, with
/// interrupts disabled and every exception fatal. `wait_us` waits for so many
/// microseconds. One other CPU can be started, once.
pub fn start(
    boot: &BootInfo,
    apic: &LocalApic,
    id: u32,
    wait_us: impl Fn(u64),
    main: fn() -> !,
) -> Result<(), StartError> {
    copy_code(boot)?;
    MAIN.call_once(|| main);
    let page = (PAGE / PAGE_BYTES) as u8;
    apic.send_init(id);
    wait_us(10_000);
    for _ in 0..2 {
        apic.send_startup(id, page);
        wait_us(200);
    }
    let mut waited = 0;
    while !ARRIVED.load(Ordering::Acquire) {
        if waited >= PATIENCE_US {
            return Err(StartError::Silent(id));
        }
        wait_us(100);
        waited += 100;
    }
    Ok(())
}

fn copy_code(boot: &BootInfo) -> Result<(), StartError> {
    let range = PhysRange {
        start: PAGE,
        bytes: PAGE_BYTES,
    };
    let is_memory = boot
        .regions()
        .iter()
        .any(|region| region.kind == RegionKind::Usable && region.range.contains(&range));
    let is_module = boot.modules().iter().any(|module| module.overlaps(&range));
    if !is_memory || is_module {
        return Err(StartError::NoLowMemory(PAGE));
    }
    let code = &raw const other_cpu_code;
    let bytes = &raw const other_cpu_code_end as usize - code as usize;
    // SAFETY: usable memory, identity mapped, that nobody was given (free memory
    // begins at 1 MiB) and no module is in; the code is part of the image, less than a
    // page long.
    unsafe { core::ptr::copy_nonoverlapping(code, PAGE as *mut u8, bytes) };
    Ok(())
}
