//! Randomness that is the same for the same seed, as long as `Cargo.lock` is the same.

#[derive(Clone, Debug)]
pub(crate) struct Rng(fastrand::Rng);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// `0..end`; `end` is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    /// `first..=last`.
    pub(crate) fn within(&mut self, first: u64, last: u64) -> u64 {
        self.0.u64(first..=last)
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// `0..=last`, most of them short.
    pub(crate) fn short(&mut self, last: u64) -> u64 {
        let longest = last >> self.below(8);
        self.within(0, longest)
    }
}
