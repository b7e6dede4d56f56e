//! Random numbers that depend only on the seed, as long as `Cargo.lock` does not change.

#[derive(Clone, Debug)]
pub(crate) struct Rng(fastrand::Rng);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns a number in `0..end`. `end` must not be 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    /// Returns a number in `first..=last`.
    pub(crate) fn within(&mut self, first: u64, last: u64) -> u64 {
        self.0.u64(first..=last)
    }

    /// Returns true with this probability in percent.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Returns a number in `0..=last`, usually a small one.
    pub(crate) fn short(&mut self, last: u64) -> u64 {
        let longest = last >> self.below(8);
        self.within(0, longest)
    }
}
