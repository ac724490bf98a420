//! Draws that are the same in every run.

/// A linear congruential generator: the same load in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Its draws are all decided by `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is not nought.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// One of `all`, of which there is one at least.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// All of `all`, in any order.
    pub fn shuffled<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let mut all = all.to_vec();
        (1..all.len()).rev().for_each(|last| all.swap(last, self.below(last + 1)));
        all
    }
}
