//! A small assembler: instructions by their names, and jumps to labels.
//!
//! Knows the instruction set of RFC 9669 as far as this crate's programs use it, and nothing of
//! packets. Jumps go forward only, which is what a program without loops needs.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::bpf::Instruction;

/// A register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Register(u8);

/// What a function returns, and the program.
pub(crate) const R0: Register = Register(0);
/// The first argument; undefined after a call, as are the next four.
pub(crate) const R1: Register = Register(1);
pub(crate) const R2: Register = Register(2);
pub(crate) const R3: Register = Register(3);
pub(crate) const R4: Register = Register(4);
pub(crate) const R5: Register = Register(5);
/// Kept across calls, as are the next three.
pub(crate) const R6: Register = Register(6);
pub(crate) const R7: Register = Register(7);
pub(crate) const R8: Register = Register(8);
pub(crate) const R9: Register = Register(9);
/// The end of the stack.
pub(crate) const R10: Register = Register(10);

/// How many octets are loaded or stored.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// What is done to a register of 64 bits, by a number or another register.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Modulo = 0x90,
    ExclusiveOr = 0xa0,
    Set = 0xb0,
}

/// When a jump is taken; all numbers are unsigned.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum When {
    Equal = 0x10,
    Above = 0x20,
    AnyBit = 0x40,
    NotEqual = 0x50,
    Below = 0xa0,
}

/// A place in a program that jumps go to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    instructions: Vec<Draft>,
    /// Where the labels are.
    labels: Vec<Option<usize>>,
}

/// An instruction whose distance to a label may not be known.
#[derive(Clone, Copy, Debug)]
struct Draft {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    immediate: i32,
    label: Option<Label>,
}

impl Assembler {
    /// A label, to be [placed](Self::place) behind all jumps to it.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The next instruction is where `label` is.
    pub(crate) fn place(&mut self, label: Label) {
        let here = self.instructions.len();
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(here);
        }
    }

    pub(crate) fn set(&mut self, to: Register, value: i32) {
        self.by(Operation::Set, to, value);
    }

    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.with(Operation::Set, to, from);
    }

    /// Sets 64 bits.
    pub(crate) fn set_wide(&mut self, to: Register, value: u64) {
        self.wide(to, 0, value);
    }

    /// Sets the address of a map.
    pub(crate) fn set_map(&mut self, to: Register, map: BorrowedFd<'_>) {
        self.wide(to, PSEUDO_MAP, number(map));
    }

    /// Sets the address of octet `offset` in the only value of an array.
    pub(crate) fn set_value(&mut self, to: Register, map: BorrowedFd<'_>, offset: u32) {
        self.wide(to, PSEUDO_VALUE, number(map) | u64::from(offset) << 32);
    }

    /// Calculates with a number.
    pub(crate) fn by(&mut self, operation: Operation, to: Register, value: i32) {
        self.push(0x07 | operation as u8, to, R0, 0, value);
    }

    /// Calculates with a register.
    pub(crate) fn with(&mut self, operation: Operation, to: Register, from: Register) {
        self.push(0x0f | operation as u8, to, from, 0, 0);
    }

    /// Exchanges the lower 16 bits between the host's order and the network's; the others are zero
    /// then.
    pub(crate) fn network_order(&mut self, to: Register) {
        self.push(0xdc, to, R0, 0, 16);
    }

    pub(crate) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.push(0x61 | width as u8, to, from, offset, 0);
    }

    pub(crate) fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.push(0x63 | width as u8, to, from, offset, 0);
    }

    pub(crate) fn store_number(&mut self, width: Width, to: Register, offset: i16, value: i32) {
        self.push(0x62 | width as u8, to, R0, offset, value);
    }

    /// Adds to 64 bits in memory that others add to as well.
    pub(crate) fn add_shared(&mut self, to: Register, offset: i16, value: Register) {
        self.push(0xdb, to, value, offset, 0);
    }

    /// Writes 64 bits of `value` where R0 is what is there, and sets R0 to what was there.
    pub(crate) fn compare_exchange(&mut self, to: Register, offset: i16, value: Register) {
        self.push(0xdb, to, value, offset, 0xf1);
    }

    /// Writes 64 bits, after all that was written before, and sets `value` to what was there.
    pub(crate) fn exchange(&mut self, to: Register, offset: i16, value: Register) {
        self.push(0xdb, to, value, offset, 0xe1);
    }

    pub(crate) fn jump(&mut self, label: Label) {
        self.jumping(0x05, R0, R0, 0, label);
    }

    /// Jumps if that holds for a register and a number.
    pub(crate) fn jump_if(&mut self, one: Register, when: When, value: i32, label: Label) {
        self.jumping(0x05 | when as u8, one, R0, value, label);
    }

    /// Jumps if that holds for two registers.
    pub(crate) fn jump_if_both(&mut self, one: Register, when: When, two: Register, label: Label) {
        self.jumping(0x0d | when as u8, one, two, 0, label);
    }

    pub(crate) fn call(&mut self, function: i32) {
        self.push(0x85, R0, R0, 0, function);
    }

    pub(crate) fn exit(&mut self) {
        self.push(0x95, R0, R0, 0, 0);
    }

    /// The program.
    ///
    /// # Panics
    ///
    /// When a jump goes to a label that was not placed, or back.
    pub(crate) fn finish(self) -> Vec<Instruction> {
        let labels = self.labels;
        let instructions = self.instructions.into_iter().enumerate();
        let finished = instructions.map(|(index, draft)| {
            let distance = |label: Label| {
                let place = labels.get(label.0).copied().flatten();
                let place = place.expect("every label was placed");
                let distance = place.checked_sub(index + 1).expect("jumps go forward");
                i16::try_from(distance).expect("the program has fewer instructions")
            };
            let offset = draft.label.map_or(draft.offset, distance);
            Instruction::new(draft.code, draft.to, draft.from, offset, draft.immediate)
        });
        finished.collect()
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        self.instructions.push(Draft {
            code,
            to: to.0,
            from: from.0,
            offset,
            immediate,
            label: None,
        });
    }

    fn jumping(&mut self, code: u8, one: Register, two: Register, value: i32, label: Label) {
        self.instructions.push(Draft {
            code,
            to: one.0,
            from: two.0,
            offset: 0,
            immediate: value,
            label: Some(label),
        });
    }

    /// An instruction of two: 64 bits, of which `pseudo` says what they are.
    fn wide(&mut self, to: Register, pseudo: u8, value: u64) {
        let half = |value: u64| {
            let [a, b, c, d, ..] = value.to_le_bytes();
            i32::from_le_bytes([a, b, c, d])
        };
        self.push(0x18, to, Register(pseudo), 0, half(value));
        self.push(0x00, R0, R0, 0, half(value >> 32));
    }
}

/// A descriptor is never negative.
fn number(map: BorrowedFd<'_>) -> u64 {
    u64::from(map.as_raw_fd().unsigned_abs())
}

/// What a wide number is: the descriptor of a map, or that and an offset in its value.
const PSEUDO_MAP: u8 = 1;
const PSEUDO_VALUE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_counted_from_the_next_instruction() {
        let mut a = Assembler::default();
        let end = a.label();
        a.jump_if(R1, When::Equal, 7, end);
        a.set_wide(R2, 0x1122_3344_5566_7788);
        a.jump(end);
        a.place(end);
        a.exit();
        let expected = [
            Instruction::new(0x15, 1, 0, 3, 7),
            Instruction::new(0x18, 2, 0, 0, 0x5566_7788),
            Instruction::new(0x00, 0, 0, 0, 0x1122_3344),
            Instruction::new(0x05, 0, 0, 0, 0),
            Instruction::new(0x95, 0, 0, 0, 0),
        ];
        assert_eq!(a.finish(), expected);
    }
}
