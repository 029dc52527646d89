//! Instructions that access device registers, decoded by `yaxpeax-x86`.
//!
//! Moves (MOV, MOVZX, MOVSX, MOVSXD, MOVNTI), XCHG, and ADD, SUB, CMP, AND, TEST, OR
//! and XOR with a register or an immediate on the other side, locked or not, 1 to 8
//! bytes wide, in 64-bit code. The address is not needed: nested paging reports it.

use super::alu::Op;
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

/// Where a value comes from or goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The device.
    Device,
    /// The CPU.
    Register(Register),
    /// The instruction; nothing goes there.
    Immediate(u64),
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    /// From the device to a register, wider or not.
    Read {
        to: Register,
        /// Copy the sign upwards.
        is_signed: bool,
    },
    /// To the device.
    Write(Place),
    /// The device and a register trade values.
    Exchange(Register),
    /// `to` becomes `to` op `from`; one of the two is the device.
    Compute { op: Op, to: Place, from: Place },
}

/// One access to a device register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Access {
    pub(super) operation: Operation,
    /// Bytes accessed: 1, 2, 4 or 8.
    pub(super) width: u8,
    /// Bytes of the instruction.
    pub(super) length: u64,
}

/// The access that `bytes` starts with, or `None` if it is anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<Access> {
    let instruction = InstDecoder::default().decode_slice(bytes).ok()?;
    let width = instruction.mem_size()?.bytes_size()?;
    if !matches!(width, 1 | 2 | 4 | 8) || instruction.prefixes.rep_any() {
        return None;
    }
    let (first, second) = (
        place(instruction.operand(0))?,
        place(instruction.operand(1))?,
    );
    let operation = match instruction.opcode() {
        Opcode::MOV | Opcode::MOVZX | Opcode::MOVNTI => movement(first, second, false)?,
        Opcode::MOVSX | Opcode::MOVSXD => movement(first, second, true)?,
        Opcode::XCHG => match (first, second) {
            (Place::Device, Place::Register(register))
            | (Place::Register(register), Place::Device) => Operation::Exchange(register),
            _ => return None,
        },
        opcode => Operation::Compute {
            op: computation(opcode)?,
            to: first,
            from: second,
        },
    };
    Some(Access {
        operation,
        width,
        length: instruction.len().to_const(),
    })
}

fn movement(to: Place, from: Place, is_signed: bool) -> Option<Operation> {
    match (to, from) {
        (Place::Register(to), Place::Device) => Some(Operation::Read { to, is_signed }),
        (Place::Device, from) => Some(Operation::Write(from)),
        _ => None,
    }
}

fn computation(opcode: Opcode) -> Option<Op> {
    Some(match opcode {
        Opcode::ADD => Op::Add,
        Opcode::SUB => Op::Sub,
        Opcode::CMP => Op::Cmp,
        Opcode::AND => Op::And,
        Opcode::TEST => Op::Test,
        Opcode::OR => Op::Or,
        Opcode::XOR => Op::Xor,
        _ => return None,
    })
}

fn place(operand: Operand) -> Option<Place> {
    match operand {
        Operand::Register { reg } => register(reg).map(Place::Register),
        memory if memory.is_memory() => Some(Place::Device),
        constant => immediate(constant).map(Place::Immediate),
    }
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

    fn write(from: Place) -> Operation {
        Operation::Write(from)
    }

    fn store(from: Register) -> Operation {
        write(Place::Register(from))
    }

    #[test]
    fn computations_name_both_sides_in_order() {
        let compute = |op, to, from| Operation::Compute { op, to, from };
        let register = |index, bytes| Place::Register(reg(index, bytes));
        let cases: [(&[u8], Operation); 7] = [
            (
                &[0x01, 0x07],
                compute(Op::Add, Place::Device, register(0, 4)),
            ),
            (
                &[0x03, 0x07],
                compute(Op::Add, register(0, 4), Place::Device),
            ),
            // lock or qword [rdi], 1
            (
                &[0xf0, 0x48, 0x83, 0x0f, 1],
                compute(Op::Or, Place::Device, Place::Immediate(1)),
            ),
            // test byte [rdi], 0x20
            (
                &[0xf6, 0x07, 0x20],
                compute(Op::Test, Place::Device, Place::Immediate(0x20)),
            ),
            // and dword [rdi], -2
            (
                &[0x83, 0x27, 0xfe],
                compute(Op::And, Place::Device, Place::Immediate(u64::MAX - 1)),
            ),
            (
                &[0x3b, 0x07],
                compute(Op::Cmp, register(0, 4), Place::Device),
            ),
            (&[0x48, 0x87, 0x07], Operation::Exchange(reg(0, 8))),
        ];
        for (bytes, operation) in cases {
            let decoded = decode(bytes).unwrap_or_else(|| panic!("{bytes:x?}"));
            assert_eq!(decoded.operation, operation, "{bytes:x?}");
            assert_eq!(decoded.length, bytes.len() as u64);
        }
    }

    #[test]
    fn moves_are_decoded_with_width_and_length() {
        let read = |to, is_signed| Operation::Read { to, is_signed };
        let cases: [(&[u8], Operation, u8); 11] = [
            (&[0x8b, 0x07], read(reg(0, 4), false), 4), // mov eax, [rdi]
            (&[0x4c, 0x8b, 0x47, 8], read(reg(8, 8), false), 8), // mov r8, [rdi+8]
            (&[0x89, 0x17], store(reg(2, 4)), 4),       // mov [rdi], edx
            (&[0x40, 0x88, 0x37], store(reg(6, 1)), 1), // mov [rdi], sil
            (&[0x66, 0x89, 0x07], store(reg(0, 2)), 2), // mov [rdi], ax
            (
                &[0xc7, 0x07, 1, 0, 0, 0x80],
                write(Place::Immediate(0xffff_ffff_8000_0001)),
                4,
            ),
            (&[0x0f, 0xb6, 0x07], read(reg(0, 4), false), 1), // movzx eax, byte [rdi]
            (&[0x48, 0x0f, 0xbf, 0x07], read(reg(0, 8), true), 2), // movsx rax, word [rdi]
            (&[0x48, 0x63, 0x07], read(reg(0, 8), true), 4),  // movsxd rax, [rdi]
            (&[0x0f, 0xc3, 0x07], store(reg(0, 4)), 4),       // movnti [rdi], eax
            (
                &[0x48, 0xa3, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0],
                store(reg(0, 8)),
                8,
            ),
        ];
        for (bytes, operation, width) in cases {
            let decoded = decode(bytes).unwrap_or_else(|| panic!("{bytes:x?}"));
            assert_eq!(decoded.width, width, "{bytes:x?}");
            assert_eq!(decoded.length, bytes.len() as u64, "{bytes:x?}");
            match (decoded.operation, operation) {
                (Operation::Write(Place::Immediate(a)), Operation::Write(Place::Immediate(b))) => {
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
        assert_eq!(high.operation, store(ah));
    }

    #[test]
    fn other_instructions_and_torn_ones_are_refused() {
        let others: [&[u8]; 6] = [
            &[0x11, 0x07],       // adc [rdi], eax
            &[0xf3, 0xa4],       // rep movsb
            &[0x0f, 0x11, 0x07], // movups [rdi], xmm0
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
