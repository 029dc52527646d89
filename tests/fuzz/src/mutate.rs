//! New inputs out of old ones.

/// A source of mutations: the same seed gives the same ones.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

/// Values at which arithmetic goes wrong.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xfff,
    0x1000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 63,
    u64::MAX,
];

/// The longest input made.
const LONGEST: usize = 1 << 13;

impl Mutator {
    /// A source with that seed.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed ^ 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // xorshift64*.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let mixed = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (mixed >> 32) as usize % bound
    }

    /// A few changes to one of `corpus`, which is not empty.
    pub fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut input, corpus);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let count = self.below(16) + 1;
        match self.below(8) {
            0 => input.truncate(at),
            1 => {
                let end = (at + count).min(input.len());
                input.drain(at..end);
            }
            2 => {
                let noise: Vec<u8> = (0..count).map(|_| self.below(256) as u8).collect();
                input.splice(at..at, noise);
            }
            3 => {
                let end = (at + count * 4).min(input.len());
                let again = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, again);
            }
            4 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend(&other[from..]);
            }
            5 => {
                let value = EDGES[self.below(EDGES.len())].to_le_bytes();
                let width = 1 << self.below(4);
                for (byte, new) in input.iter_mut().skip(at).zip(&value[..width]) {
                    *byte = *new;
                }
            }
            6 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = byte.wrapping_add(count as u8).wrapping_sub(8);
                }
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}
