//! Arithmetic of instructions that are carried out for the guest.
//!
//! AMD64 Architecture Programmer's Manual volume 3, chapter 3, and volume 1,
//! section 3.1.4 (flags).

use super::decode::truncate;

/// Carry.
const CF: u64 = 1 << 0;
/// Even number of ones in the low byte.
const PF: u64 = 1 << 2;
/// Carry out of bit 3; undefined after logic, and cleared then.
const AF: u64 = 1 << 4;
/// Zero.
const ZF: u64 = 1 << 6;
/// The highest bit.
const SF: u64 = 1 << 7;
/// Signed overflow.
const OF: u64 = 1 << 11;

/// What is computed from two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Add,
    Sub,
    /// SUB without its result.
    Cmp,
    And,
    /// AND without its result.
    Test,
    Or,
    Xor,
}

/// The result, unless only flags are wanted, and the new flags.
pub(super) fn compute(op: Op, left: u64, right: u64, width: u8, rflags: u64) -> (Option<u64>, u64) {
    let sign = 1 << (8 * u32::from(width) - 1);
    let (left, right) = (truncate(left, width), truncate(right, width));
    let (result, carry, overflow) = match op {
        Op::Add => {
            let sum = truncate(left.wrapping_add(right), width);
            (sum, sum < left, !(left ^ right) & (left ^ sum) & sign != 0)
        }
        Op::Sub | Op::Cmp => {
            let difference = truncate(left.wrapping_sub(right), width);
            let overflow = (left ^ right) & (left ^ difference) & sign != 0;
            (difference, left < right, overflow)
        }
        Op::And | Op::Test => (left & right, false, false),
        Op::Or => (left | right, false, false),
        Op::Xor => (left ^ right, false, false),
    };
    let is_sum = matches!(op, Op::Add | Op::Sub | Op::Cmp);
    let flags = [
        (CF, carry),
        (PF, (result as u8).count_ones().is_multiple_of(2)),
        (AF, is_sum && (left ^ right ^ result) & 0x10 != 0),
        (ZF, result == 0),
        (SF, result & sign != 0),
        (OF, overflow),
    ];
    let rflags = flags.iter().fold(
        rflags,
        |all, (flag, is_set)| {
            if *is_set { all | flag } else { all & !flag }
        },
    );
    let is_kept = !matches!(op, Op::Cmp | Op::Test);
    (is_kept.then_some(result), rflags)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use core::arch::asm;

    const ALL: u64 = CF | PF | AF | ZF | SF | OF;

    macro_rules! on_this_cpu {
        ($instruction:literal, $left:expr, $right:expr, $type:ty, $modifier:literal) => {{
            let mut left = $left as $type;
            let flags: u64;
            // SAFETY: arithmetic between registers, and the flags read back.
            unsafe {
                asm!(
                    concat!($instruction, " {a", $modifier, "}, {b", $modifier, "}"),
                    "pushfq",
                    "pop {flags}",
                    a = inout(reg) left,
                    b = in(reg) $right as $type,
                    flags = out(reg) flags,
                );
            }
            (u64::from(left), flags & ALL)
        }};
    }

    macro_rules! check {
        ($op:expr, $instruction:literal, $left:expr, $right:expr) => {
            for (width, (value, flags)) in [
                (2, on_this_cpu!($instruction, $left, $right, u16, ":x")),
                (4, on_this_cpu!($instruction, $left, $right, u32, ":e")),
                (8, on_this_cpu!($instruction, $left, $right, u64, ":r")),
            ] {
                let (result, ours) = compute($op, $left, $right, width, 0);
                let defined = match $op {
                    Op::Add | Op::Sub | Op::Cmp => ALL,
                    _ => ALL & !AF,
                };
                proptest::prop_assert_eq!(ours & defined, flags & defined);
                if let Some(result) = result {
                    proptest::prop_assert_eq!(result, value);
                }
            }
        };
    }

    proptest::proptest! {
        #[test]
        fn results_and_flags_are_those_of_a_cpu(left: u64, right: u64) {
            check!(Op::Add, "add", left, right);
            check!(Op::Sub, "sub", left, right);
            check!(Op::Cmp, "cmp", left, right);
            check!(Op::And, "and", left, right);
            check!(Op::Test, "test", left, right);
            check!(Op::Or, "or", left, right);
            check!(Op::Xor, "xor", left, right);
            check!(Op::Sub, "sub", left, left);
        }
    }

    #[test]
    fn other_flags_stay() {
        let (_, rflags) = compute(Op::Cmp, 1, 1, 1, 1 << 9 | CF);
        assert_eq!(rflags, 1 << 9 | ZF | PF);
    }
}
