//! Instructions that access device registers, decoded by `yaxpeax-x86`.
//!
//! Drivers reach registers through plain moves, so these are all there are: MOV
//! between memory and a register or from an immediate, MOVZX, MOVSX, MOVSXD and
//! MOVNTI, 1 to 8 bytes wide, in 64-bit code. The address is not needed: nested
//! paging reports it.

use crate::vcpu::VcpuState;
use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::long_mode::{InstDecoder, Opcode, Operand, RegSpec, register_class};

/// The longest instruction, in bytes.
pub(super) const MAX_LENGTH: usize = 15;

/// A general register or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Register {
    index: usize,
    bytes: u8,
    /// AH, CH, DH or BH.
    is_high_byte: bool,
}

/// What moves, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From the device to a register, wider or not.
    Read {
        to: Register,
        /// Copy the sign upwards.
        is_signed: bool,
    },
    /// From a register to the device.
    Write(Register),
    /// A constant to the device.
    WriteImmediate(u64),
}

/// One move between a device register and the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub(super) direction: Direction,
    /// Bytes accessed: 1, 2, 4 or 8.
    pub(super) width: u8,
    /// Bytes of the instruction.
    pub(super) length: u64,
}

/// The move that `bytes` starts with, or `None` if it is anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<Move> {
    let instruction = InstDecoder::default().decode_slice(bytes).ok()?;
    let width = instruction.mem_size()?.bytes_size()?;
    if !matches!(width, 1 | 2 | 4 | 8) || instruction.prefixes.rep_any() {
        return None;
    }
    let (first, second) = (instruction.operand(0), instruction.operand(1));
    let is_signed = match instruction.opcode() {
        Opcode::MOV | Opcode::MOVZX | Opcode::MOVNTI => false,
        Opcode::MOVSX | Opcode::MOVSXD => true,
        _ => return None,
    };
    let direction = match (first, second) {
        (Operand::Register { reg }, memory) if memory.is_memory() => Direction::Read {
            to: register(reg)?,
            is_signed,
        },
        (memory, Operand::Register { reg }) if memory.is_memory() => {
            Direction::Write(register(reg)?)
        }
        (memory, constant) if memory.is_memory() => Direction::WriteImmediate(immediate(constant)?),
        _ => return None,
    };
    Some(Move {
        direction,
        width,
        length: instruction.len().to_const(),
    })
}

fn register(reg: RegSpec) -> Option<Register> {
    let (index, class) = (usize::from(reg.num()), reg.class());
    let bytes = match class {
        register_class::Q => 8,
        register_class::D => 4,
        register_class::W => 2,
        register_class::B | register_class::RB => 1,
        _ => return None,
    };
    // Without a REX prefix, byte registers 4 to 7 are AH to BH.
    let is_high_byte = class == register_class::B && index >= 4;
    Some(Register {
        index: if is_high_byte { index - 4 } else { index },
        bytes,
        is_high_byte,
    })
}

fn immediate(operand: Operand) -> Option<u64> {
    Some(match operand {
        Operand::ImmediateI8 { imm } => i64::from(imm) as u64,
        Operand::ImmediateU8 { imm } => u64::from(imm),
        Operand::ImmediateI16 { imm } => i64::from(imm) as u64,
        Operand::ImmediateU16 { imm } => u64::from(imm),
        Operand::ImmediateI32 { imm } => i64::from(imm) as u64,
        Operand::ImmediateU32 { imm } => u64::from(imm),
        Operand::ImmediateI64 { imm } => imm as u64,
        Operand::ImmediateU64 { imm } => imm,
        _ => return None,
    })
}

impl Register {
    /// The value in the register.
    pub(super) fn get(self, state: &VcpuState) -> u64 {
        let value = state.gpr.get(self.index).copied().unwrap_or(0);
        truncate(
            if self.is_high_byte { value >> 8 } else { value },
            self.bytes,
        )
    }

    /// Sets the register: 32-bit results clear the upper half, narrower ones keep
    /// what is above them.
    pub(super) fn set(self, state: &mut VcpuState, value: u64) {
        let Some(register) = state.gpr.get_mut(self.index) else {
            return;
        };
        let value = truncate(value, self.bytes);
        *register = match (self.bytes, self.is_high_byte) {
            (1, true) => *register & !0xff00 | value << 8,
            (1, false) => *register & !0xff | value,
            (2, _) => *register & !0xffff | value,
            _ => value,
        };
    }
}

/// The low `bytes` bytes.
pub(super) fn truncate(value: u64, bytes: u8) -> u64 {
    match bytes {
        0..8 => value & ((1 << (8 * u32::from(bytes))) - 1),
        _ => value,
    }
}

/// The value of `bytes` bytes with its sign copied upwards.
pub(super) fn sign_extend(value: u64, bytes: u8) -> u64 {
    let shift = 64 - 8 * u32::from(bytes.clamp(1, 8));
    ((value << shift) as i64 >> shift) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn reg(index: usize, bytes: u8) -> Register {
        Register {
            index,
            bytes,
            is_high_byte: false,
        }
    }

    #[test]
    fn moves_are_decoded_with_width_and_length() {
        let read = |to, is_signed| Direction::Read { to, is_signed };
        let cases: [(&[u8], Direction, u8); 11] = [
            (&[0x8b, 0x07], read(reg(0, 4), false), 4), // mov eax, [rdi]
            (&[0x4c, 0x8b, 0x47, 8], read(reg(8, 8), false), 8), // mov r8, [rdi+8]
            (&[0x89, 0x17], Direction::Write(reg(2, 4)), 4), // mov [rdi], edx
            (&[0x40, 0x88, 0x37], Direction::Write(reg(6, 1)), 1), // mov [rdi], sil
            (&[0x66, 0x89, 0x07], Direction::Write(reg(0, 2)), 2), // mov [rdi], ax
            (
                &[0xc7, 0x07, 1, 0, 0, 0x80],
                Direction::WriteImmediate(0xffff_ffff_8000_0001),
                4,
            ),
            (&[0x0f, 0xb6, 0x07], read(reg(0, 4), false), 1), // movzx eax, byte [rdi]
            (&[0x48, 0x0f, 0xbf, 0x07], read(reg(0, 8), true), 2), // movsx rax, word [rdi]
            (&[0x48, 0x63, 0x07], read(reg(0, 8), true), 4),  // movsxd rax, [rdi]
            (&[0x0f, 0xc3, 0x07], Direction::Write(reg(0, 4)), 4), // movnti [rdi], eax
            (
                &[0x48, 0xa3, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0],
                Direction::Write(reg(0, 8)),
                8,
            ),
        ];
        for (bytes, direction, width) in cases {
            let decoded = decode(bytes).unwrap_or_else(|| panic!("{bytes:x?}"));
            assert_eq!(decoded.width, width, "{bytes:x?}");
            assert_eq!(decoded.length, bytes.len() as u64, "{bytes:x?}");
            match (decoded.direction, direction) {
                (Direction::WriteImmediate(a), Direction::WriteImmediate(b)) => {
                    assert_eq!(truncate(a, width), truncate(b, width));
                }
                (a, b) => assert_eq!(a, b, "{bytes:x?}"),
            }
        }
        let high = decode(&[0x88, 0x27]).unwrap(); // mov [rdi], ah
        let ah = Register {
            is_high_byte: true,
            ..reg(0, 1)
        };
        assert_eq!(high.direction, Direction::Write(ah));
    }

    #[test]
    fn other_instructions_and_torn_ones_are_refused() {
        let others: [&[u8]; 7] = [
            &[0x01, 0x07],       // add [rdi], eax
            &[0xf3, 0xa4],       // rep movsb
            &[0x0f, 0x11, 0x07], // movups [rdi], xmm0
            &[0x48, 0x87, 0x07], // xchg [rdi], rax
            &[0x89, 0xd0],       // mov eax, edx
            &[0xc7, 0x07, 1],    // the immediate is missing
            &[],
        ];
        for bytes in others {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
    }

    #[test]
    fn narrow_results_keep_what_is_above_and_32_bit_ones_clear_it() {
        let mut state = VcpuState::pvh(0, 0);
        state.gpr[0] = u64::MAX;
        reg(0, 1).set(&mut state, 0x12);
        assert_eq!(state.gpr[0], 0xffff_ffff_ffff_ff12);
        reg(0, 2).set(&mut state, 0x3456);
        assert_eq!(state.gpr[0], 0xffff_ffff_ffff_3456);
        reg(0, 4).set(&mut state, 0x789a_bcde);
        assert_eq!(state.gpr[0], 0x789a_bcde);
        assert_eq!(sign_extend(0x80, 1), 0xffff_ffff_ffff_ff80);
        assert_eq!(sign_extend(5, 8), 5);
    }
}
