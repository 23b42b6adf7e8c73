//! The value of Block1 and Block2: [`Block`] (RFC 7959 §2.2).

/// Which block of a body, whether more follow, and how large blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The block's number within the body, 0 to 2^20 - 1.
    pub number: u32,
    /// Whether blocks follow this one.
    pub more: bool,
    /// Size exponent: a block holds `16 << exponent` bytes; 0 to 6.
    pub exponent: u8,
}

impl Block {
    /// The largest block number that fits the option.
    pub const MAX_NUMBER: u32 = (1 << 20) - 1;
    /// The size exponent of 1024 bytes, the largest over UDP.
    pub const MAX_EXPONENT: u8 = 6;

    /// Reads an option's value; `None` for the reserved size exponent 7 or a value of more than three bytes.
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.len() > 3 {
            return None;
        }
        let bits = super::uint(value);
        let block = Self { number: bits >> 4, more: bits & 8 != 0, exponent: (bits & 7) as u8 };
        (block.exponent <= Self::MAX_EXPONENT).then_some(block)
    }

    /// The option's value as the unsigned integer that is written.
    pub fn to_bits(self) -> u32 {
        self.number << 4 | u32::from(self.more) << 3 | u32::from(self.exponent)
    }

    /// Bytes in a full block: 16 to 1024.
    pub fn size(self) -> usize {
        16 << self.exponent
    }

    /// Where the block begins in the body.
    pub fn offset(self) -> usize {
        self.number as usize * self.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_number_of_20_bits_survives_the_wire() {
        for number in [0, 1, 15, 16, 4095, 4096, 5000, Block::MAX_NUMBER] {
            for exponent in 0..=6 {
                let block = Block { number, more: true, exponent };
                let bytes = block.to_bits().to_be_bytes();
                assert_eq!(Block::parse(&bytes[1..]), Some(block));
            }
        }
    }

    #[test]
    fn the_reserved_size_and_a_value_of_four_bytes_are_refused() {
        assert_eq!(Block::parse(&[0x07]), None);
        assert_eq!(Block::parse(&[0, 0, 0, 6]), None);
        assert_eq!(Block::parse(&[]), Some(Block { number: 0, more: false, exponent: 0 }));
    }
}
