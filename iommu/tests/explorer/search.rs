//! Which interleaving comes next.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

/// Ends a run whose rest is known.
pub struct Pruned;

/// What decides at each point where software or hardware may go on.
pub enum Search {
    /// Every way, each state once.
    Exhaustive(Exhaustive),
    /// Ways drawn from a seed.
    Random(u64),
}

/// Depth-first search by running anew from the start for every way.
///
/// Software is deterministic: what it does next follows from how far it is and
/// what it has read. A state in which both, memory and hardware have been seen
/// before has no new future, so the run ends there.
#[derive(Default)]
pub struct Exhaustive {
    /// For each choice of this run: what was taken, and of how many.
    path: Vec<(usize, usize)>,
    at: usize,
    seen: HashSet<u128>,
}

impl Search {
    pub fn exhaustive() -> Self {
        Self::Exhaustive(Exhaustive::default())
    }

    /// One of `options`, in the state that `state` hashes.
    pub fn choose(&mut self, options: usize, state: impl FnOnce() -> u128) -> usize {
        match self {
            Self::Random(seed) => (next(seed) >> 33) as usize % options,
            Self::Exhaustive(search) => {
                if search.at == search.path.len() {
                    if !search.seen.insert(state()) {
                        std::panic::resume_unwind(Box::new(Pruned));
                    }
                    search.path.push((0, options));
                }
                let (taken, of) = search.path[search.at];
                assert_eq!(of, options, "software is not deterministic");
                search.at += 1;
                taken
            }
        }
    }

    /// Prepares the next run; false if there is none.
    pub fn advance(&mut self) -> bool {
        let Self::Exhaustive(search) = self else {
            return false;
        };
        search.at = 0;
        while let Some((taken, of)) = search.path.pop() {
            if taken + 1 < of {
                search.path.push((taken + 1, of));
                return true;
            }
        }
        false
    }

    /// How many states were seen, once each.
    pub fn states(&self) -> usize {
        match self {
            Self::Exhaustive(search) => search.seen.len(),
            Self::Random(_) => 0,
        }
    }
}

/// A step of a linear congruential generator (Knuth's MMIX constants).
pub fn next(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed
}

/// 128 bits, so that two states do not meet by chance.
pub fn hash(value: impl Hash) -> u128 {
    let mut mixer = Mixer(0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f);
    value.hash(&mut mixer);
    u128::from(mixer.0) << 64 | u128::from(mixer.1)
}

/// Two multiplicative hashes side by side: states are many, and nobody attacks.
struct Mixer(u64, u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mix = |lane: u64, factor: u64| {
            let mixed = (lane ^ word).wrapping_mul(factor);
            mixed ^ mixed >> 29
        };
        self.0 = mix(self.0.rotate_left(5), 0xff51_afd7_ed55_8ccd);
        self.1 = mix(self.1.rotate_left(9), 0xc4ce_b9fe_1a85_ec53);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
