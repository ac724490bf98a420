//! Draws that are the same in every run.

use fastrand::Rng;

/// The same load in every run.
#[derive(Clone, Debug)]
pub struct Random(Rng);

impl Random {
    /// Its draws are all decided by `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// A number below `bound`, which is not nought.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }

    /// One of `all`, of which there is one at least.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// All of `all`, in any order.
    pub fn shuffled<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let mut all = all.to_vec();
        self.0.shuffle(&mut all);
        all
    }
}
