//! From the boot loader to Rust: the PVH entry point.
//!
//! PVH starts the image in 32-bit protected mode with flat segments, paging off,
//! and the physical address of the start information in EBX. What the code here
//! needs of the CPU (long mode, pages of 1 GiB) it checks first; a CPU without
//! them gets a message on COM1.
#![allow(unsafe_code)]

use crate::debug_exit::{Exit, exit};
use crate::physical::{FirmwareMemory, PhysRange};
use crate::{BootInfo, interrupts, logger, paging, pic, segments, stacks};
use core::arch::global_asm;
use spin::Once;

/// CR0: paging, write protection of read-only pages in ring 0, native x87 errors,
/// the x87 unit present and monitored, protected mode. EM, TS, CD and NW clear.
pub(crate) const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;
/// CR4: physical address extension, FXSAVE, SSE exceptions.
pub(crate) const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// EFER: long mode, no-execute pages.
pub(crate) const EFER: u32 = 1 << 8 | 1 << 11;
/// CPUID 0x80000001 EDX: long mode, pages of 1 GiB.
const CPU_FEATURES: u32 = 1 << 29 | 1 << 26;
/// A present, writable page of 1 GiB.
const GIANT_PAGE: u32 = 1 << 7 | 0b11;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_ENTRY: u32 = 18;

global_asm!(
    // The note by which a boot loader finds the entry point.
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, {note_entry}",
    ".asciz \"Xen\"",
    ".quad pvh_start",
    ".popsection",
    "",
    ".pushsection .text.entry, \"ax\", @progbits",
    ".code32",
    ".global pvh_start",
    "pvh_start:",
    "cli",
    "cld",
    "mov esp, offset {stacks} + {stack_top}",
    "mov edi, ebx", // the start information, kept until Rust takes it
    "",
    // Long mode and pages of 1 GiB?
    "mov eax, 0x80000000",
    "cpuid",
    "cmp eax, 0x80000001",
    "jb 8f",
    "mov eax, 0x80000001",
    "cpuid",
    "and edx, {cpu_features}",
    "cmp edx, {cpu_features}",
    "jne 8f",
    "",
    // The identity map: entry i of level 3 is the GiB at i << 30.
    "mov eax, offset {level3} + 3",
    "mov [{level4}], eax",
    "mov dword ptr [{level4} + 4], 0",
    "xor ecx, ecx",
    "3:",
    "mov eax, ecx",
    "shl eax, 30",
    "or eax, {giant_page}",
    "mov edx, ecx",
    "shr edx, 2",
    "mov [{level3} + ecx * 8], eax",
    "mov [{level3} + ecx * 8 + 4], edx",
    "inc ecx",
    "cmp ecx, 512",
    "jne 3b",
    "",
    // Long mode, in the order the manuals give: CR4, CR3, EFER, CR0.
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
    "lgdt [boot_gdt_pointer]",
    "push 8",
    "mov eax, offset boot_long_mode",
    "push eax",
    "retf",
    "",
    // No: say so and stop.
    "8:",
    "mov esi, offset boot_refusal",
    "9:",
    "mov dx, 0x3f8 + 5",
    "2:",
    "in al, dx",
    "test al, 0x20", // room for a byte
    "jz 2b",
    "mov al, [esi]",
    "test al, al",
    "jz 4f",
    "mov dx, 0x3f8",
    "out dx, al",
    "inc esi",
    "jmp 9b",
    "4:",
    "mov eax, {failure}",
    "mov dx, 0xf4",
    "out dx, eax",
    "6:",
    "hlt",
    "jmp 6b",
    "boot_refusal:",
    ".asciz \"error: the CPU has no long mode or no pages of 1 GiB\\n\"",
    "",
    // The descriptor table used until `segments::load`: null and 64-bit code.
    ".balign 8",
    "boot_gdt:",
    ".quad 0",
    ".quad 0x00209a0000000000",
    "boot_gdt_pointer:",
    ".word 15",
    ".long boot_gdt",
    "",
    ".code64",
    "boot_long_mode:",
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
    "mov edi, edi", // zero extension: the argument is 64 bits wide
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".popsection",
    note_entry = const NOTE_ENTRY,
    stacks = sym stacks::STACKS,
    stack_top = const stacks::MAIN.top,
    level3 = sym paging::LEVEL3,
    level4 = sym paging::LEVEL4,
    cpu_features = const CPU_FEATURES,
    giant_page = const GIANT_PAGE,
    cr0 = const CR0,
    cr4 = const CR4,
    efer = const EFER,
    failure = const Exit::Failure as u32,
    start = sym start,
);

unsafe extern "Rust" {
    /// The image's own main, defined with `entry!`.
    safe fn image_main(boot: &'static BootInfo) -> !;
}

unsafe extern "C" {
    /// The linker script's bounds of the image.
    static image_start: u8;
    static image_end: u8;
}

/// Where the image itself lies, its zero-initialised data included.
pub fn image_range() -> PhysRange {
    let start = &raw const image_start as u64;
    PhysRange {
        start,
        bytes: &raw const image_end as u64 - start,
    }
}

static BOOT_INFO: Once<BootInfo> = Once::new();

/// The first Rust code.
extern "C" fn start(start_info: u64) -> ! {
    logger::start();
    segments::load(0);
    interrupts::load();
    pic::mask_all();
    paging::guard_stacks();
    // SAFETY: this is an image, running on the identity map.
    let memory = unsafe { FirmwareMemory::new() };
    match BootInfo::read(&memory, start_info) {
        Ok(info) => image_main(BOOT_INFO.call_once(|| info)),
        Err(error) => {
            log::error!("{error}");
            exit(Exit::Failure)
        }
    }
}
