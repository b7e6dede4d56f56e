//! Sets of numbers as people write them: `3,7,10-20`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::RANGES_MAX;
use crate::spec::ArrayRange;

/// A set of numbers that is not empty, such as indexes of tasks or exit codes. Written as text, here
/// and on the wire: numbers and ranges with commas between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ranges(
    /// In order, with a gap between each two.
    Box<[ArrayRange]>,
);

/// Why a text is not a set of numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    /// A part is neither a number nor a range.
    #[error("`{}` is neither a number nor a range: write them as 3,7,10-20", .0.escape_debug())]
    Part(String),
    /// A range ends before it begins.
    #[error("{0}-{1} is not a range: it ends before it begins")]
    Reversed(u32, u32),
    /// There are too many ranges.
    #[error("{0} numbers and ranges are over the limit of {RANGES_MAX} (RANGES_MAX)")]
    TooMany(usize),
}

impl Ranges {
    /// Returns whether a number is in the set.
    pub fn contains(&self, number: u32) -> bool {
        let after = self.0.partition_point(|range| range.last < number);
        self.0.get(after).is_some_and(|range| range.contains(number))
    }

    /// Returns whether all numbers from `first` to `last` are in the set.
    pub fn contains_all(&self, first: u32, last: u32) -> bool {
        self.0.iter().any(|range| range.contains(first) && range.contains(last))
    }

    /// Returns the lowest number.
    pub fn first(&self) -> u32 {
        self.0.first().map_or(0, |range| range.first)
    }

    /// Returns the highest number.
    pub fn last(&self) -> u32 {
        self.0.last().map_or(0, |range| range.last)
    }

    /// Returns the ranges in order. There is a gap between each two.
    pub fn iter(&self) -> impl Iterator<Item = ArrayRange> {
        self.0.iter().copied()
    }

    /// Returns how many numbers are in the set.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.tasks()).sum()
    }
}

impl From<ArrayRange> for Ranges {
    fn from(range: ArrayRange) -> Self {
        Self([range].into())
    }
}

impl FromStr for Ranges {
    type Err = RangesError;

    fn from_str(text: &str) -> Result<Self, RangesError> {
        let number = |digits: &str| {
            let digits = digits.trim();
            let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse::<u32>().ok().filter(|_| is_plain);
            number.ok_or_else(|| RangesError::Part(clip(text)))
        };
        let parts = text.split(',').count();
        if parts > RANGES_MAX {
            return Err(RangesError::TooMany(parts));
        }
        let mut all = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(RangesError::Reversed(first, last));
            }
            all.push(ArrayRange { first, last });
        }
        all.sort_unstable_by_key(|range| (range.first, range.last));
        let mut joined: Vec<ArrayRange> = Vec::new();
        for range in all {
            match joined.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Ok(Self(joined.into()))
    }
}

fn clip(text: &str) -> String {
    text.chars().take(60).collect()
}

impl TryFrom<String> for Ranges {
    type Error = RangesError;

    fn try_from(text: String) -> Result<Self, RangesError> {
        text.parse()
    }
}

impl From<Ranges> for String {
    fn from(ranges: Ranges) -> Self {
        ranges.to_string()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, ArrayRange { first, last }) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_exactly_the_numbers_that_were_written() {
        let set: Ranges = "10-20,3, 7,18-22,23".parse().unwrap();
        assert_eq!(set.to_string(), "3,7,10-23");
        let inside: Vec<u32> = (0..30).filter(|number| set.contains(*number)).collect();
        assert_eq!(inside, [vec![3, 7], (10..=23).collect()].concat());
        assert_eq!((set.first(), set.last(), set.count()), (3, 23, 16));
        assert!(set.contains_all(11, 23) && !set.contains_all(7, 10));
        let all: Ranges = "0-4294967295,5".parse().unwrap();
        assert_eq!((all.count(), all.contains(u32::MAX)), (1 << 32, true));
        assert_eq!(set, set.to_string().parse().unwrap());
    }

    #[test]
    fn what_is_not_a_set_is_refused() {
        for text in ["", ",", "1,", "a", "1-", "-1", "1-2-3", "4294967296", "1;2", "+3", "\u{1b}"] {
            let said = text.parse::<Ranges>().unwrap_err().to_string();
            assert!(said.contains("3,7,10-20") && !said.contains('\u{1b}'), "{text}: {said}");
        }
        assert!("5-3".parse::<Ranges>().unwrap_err().to_string().contains("before it begins"));
        let many = vec!["1"; RANGES_MAX + 1].join(",");
        assert!(many.parse::<Ranges>().unwrap_err().to_string().contains("RANGES_MAX"));
    }
}
