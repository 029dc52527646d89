//! What single instructions do: decoded before each is executed.

use yaxpeax_x86::long_mode::{InstDecoder, Instruction, Opcode, Operand, RegSpec, register_class};

/// The longest instruction, in bytes.
pub const MAX_LENGTH: usize = 15;
const LINE_BYTES: u64 = 64;
const LINES_A_WORD: u64 = 64;
/// Lines that can be told apart: 32 MiB of tables.
const LINE_WORDS: usize = 8192;

/// Sums over the instructions seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How many there were.
    pub instructions: u64,
    /// Those that lock a memory location: a LOCK prefix, or XCHG with memory.
    pub locked: u64,
    /// Distinct cache lines of translation tables that were read or written.
    pub table_lines: u64,
    /// Reads of the remapping unit's registers.
    pub mmio_reads: u64,
    /// Writes to them.
    pub mmio_writes: u64,
}

/// The general registers and RIP, before an instruction.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// In the numbering of the instruction encoding: RAX is 0, RSP is 4.
    pub general: [u64; 16],
    /// The instruction's own address.
    pub rip: u64,
}

/// Physical addresses from `start` up to `end`.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first address.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
}

impl Span {
    fn contains(self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Counts what the instructions shown to it do.
pub struct Counter {
    tables: Span,
    registers: Span,
    lines: [u64; LINE_WORDS],
    tally: Tally,
}

impl Counter {
    /// Nothing seen yet, and nothing to look for.
    pub const fn new() -> Self {
        const NONE: Span = Span { start: 0, end: 0 };
        Self {
            tables: NONE,
            registers: NONE,
            lines: [0; LINE_WORDS],
            tally: Tally {
                instructions: 0,
                locked: 0,
                table_lines: 0,
                mmio_reads: 0,
                mmio_writes: 0,
            },
        }
    }

    /// Starts anew. Tables lie in `tables`, of which the first 32 MiB are looked
    /// at, and the unit's registers in `registers`.
    pub fn restart(&mut self, tables: Span, registers: Span) {
        self.tables = tables;
        self.registers = registers;
        self.lines.fill(0);
        self.tally = Tally::default();
    }

    /// What was seen.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes in the instruction that `bytes` begin with. One that cannot be decoded
    /// counts as an instruction and no more.
    pub fn see(&mut self, bytes: &[u8], registers: &Registers) {
        self.tally.instructions += 1;
        let Ok(instruction) = InstDecoder::default().decode_slice(bytes) else {
            return;
        };
        let memory = (0..instruction.operand_count()).find(|i| instruction.operand(*i).is_memory());
        let Some(index) = memory else { return };
        if instruction.opcode() == Opcode::LEA || instruction.opcode() == Opcode::NOP {
            return;
        }
        let is_locked = instruction.prefixes.lock() || instruction.opcode() == Opcode::XCHG;
        self.tally.locked += u64::from(is_locked);
        let next = registers.rip + yaxpeax_arch::LengthedInstruction::len(&instruction).to_const();
        if let Some(address) = address(instruction.operand(index), registers, next) {
            self.access(address, index == 0 && writes(&instruction));
        }
    }

    fn access(&mut self, address: u64, is_write: bool) {
        if self.registers.contains(address) {
            self.tally.mmio_writes += u64::from(is_write);
            self.tally.mmio_reads += u64::from(!is_write);
        }
        if self.tables.contains(address) {
            let line = (address - self.tables.start) / LINE_BYTES;
            let bit = 1 << (line % LINES_A_WORD);
            if let Some(word) = self.lines.get_mut((line / LINES_A_WORD) as usize) {
                self.tally.table_lines += u64::from(*word & bit == 0);
                *word |= bit;
            }
        }
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether an instruction with a memory operand in the first place writes to it.
fn writes(instruction: &Instruction) -> bool {
    !matches!(
        instruction.opcode(),
        Opcode::CMP | Opcode::TEST | Opcode::BT
    )
}

/// The address that an operand names; `None` for what compilers do not use for
/// tables and registers: 32-bit, masked and gathered addresses.
fn address(operand: Operand, registers: &Registers, next: u64) -> Option<u64> {
    let value = |register: RegSpec| {
        if register == RegSpec::RIP {
            return Some(next);
        }
        let is_whole = register.class() == register_class::Q;
        let value = registers.general.get(usize::from(register.num()));
        value.copied().filter(|_| is_whole)
    };
    let scaled = |index, scale: u8| Some(value(index)?.wrapping_mul(u64::from(scale)));
    let displaced = |base: u64, disp: i32| base.wrapping_add_signed(i64::from(disp));
    Some(match operand {
        Operand::AbsoluteU32 { addr } => u64::from(addr),
        Operand::AbsoluteU64 { addr } => addr,
        Operand::MemDeref { base } => value(base)?,
        Operand::Disp { base, disp } => displaced(value(base)?, disp),
        Operand::MemIndexScale { index, scale } => scaled(index, scale)?,
        Operand::MemIndexScaleDisp { index, scale, disp } => displaced(scaled(index, scale)?, disp),
        Operand::MemBaseIndexScale { base, index, scale } => {
            value(base)?.wrapping_add(scaled(index, scale)?)
        }
        Operand::MemBaseIndexScaleDisp {
            base,
            index,
            scale,
            disp,
        } => displaced(value(base)?.wrapping_add(scaled(index, scale)?), disp),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    const TABLES: Span = Span {
        start: 0x1000,
        end: 0x3000,
    };
    const UNIT: Span = Span {
        start: 0xfed9_0000,
        end: 0xfed9_1000,
    };

    fn after(bytes: &[u8], general: [u64; 16]) -> Tally {
        let mut counter = Box::new(Counter::new());
        counter.restart(TABLES, UNIT);
        let rip = 0x1800;
        counter.see(bytes, &Registers { general, rip });
        counter.tally()
    }

    #[test]
    fn locked_operations_are_those_with_a_prefix_and_exchanges_with_memory() {
        let registers = [0x1000; 16];
        assert_eq!(after(&[0xf0, 0x48, 0x21, 0x07], registers).locked, 1); // lock and [rdi], rax
        assert_eq!(after(&[0x48, 0x87, 0x07], registers).locked, 1); // xchg [rdi], rax
        assert_eq!(after(&[0x48, 0x87, 0xc7], registers).locked, 0); // xchg rdi, rax
        assert_eq!(after(&[0x48, 0x21, 0x07], registers).locked, 0); // and [rdi], rax
    }

    #[test]
    fn lines_of_tables_count_once_and_addresses_only_computed_do_not() {
        let mut counter = Box::new(Counter::new());
        counter.restart(TABLES, UNIT);
        let mut see = |bytes: &[u8], rdi| {
            let mut general = [8; 16];
            general[7] = rdi;
            counter.see(bytes, &Registers { general, rip: 0 });
            counter.tally().table_lines
        };
        let load: &[u8] = &[0x48, 0x8b, 0x07]; // mov rax, [rdi]
        assert_eq!(see(load, 0x1000), 1);
        assert_eq!(see(load, 0x1038), 1);
        assert_eq!(see(load, 0x1040), 2);
        assert_eq!(see(load, 0x3000), 2);
        assert_eq!(see(&[0x48, 0x8d, 0x07], 0x2000), 2); // lea rax, [rdi]
        assert_eq!(see(&[0x48, 0x8b, 0x44, 0xcf, 0x40], 0x2000), 3); // mov rax, [rdi+8*rcx+0x40]
        assert_eq!(see(&[0x48, 0x8b, 0x07], 0x2080), 3, "that was 0x2080");
    }

    #[test]
    fn accesses_to_the_unit_are_told_apart_and_rip_is_the_next_instructions() {
        let mut general = [0; 16];
        general[7] = UNIT.start;
        let write = after(&[0x48, 0x89, 0x87, 0x88, 0, 0, 0], general); // mov [rdi+0x88], rax
        assert_eq!((write.mmio_reads, write.mmio_writes), (0, 1));
        let read = after(&[0x8b, 0x47, 0x34], general); // mov eax, [rdi+0x34]
        assert_eq!((read.mmio_reads, read.mmio_writes), (1, 0));
        // mov rax, [rip+0x17f9] at 0x1800, 7 bytes long: 0x3000, just outside.
        let outside = after(&[0x48, 0x8b, 0x05, 0xf9, 0x17, 0, 0], general);
        assert_eq!(outside.table_lines, 0);
        let inside = after(&[0x48, 0x8b, 0x05, 0xf8, 0x17, 0, 0], general);
        assert_eq!(inside.table_lines, 1);
    }
}
