//! How many jobs each caller may submit in a time.
//!
//! Each caller has a bucket that holds as many submissions as the rate has in its time, and fills up
//! evenly. A bucket is one number: the time at which it will be full again. That takes less code than
//! to set up a crate for it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::Name;

/// With more buckets, full ones are dropped.
const BUCKETS_KEPT: usize = 1024;
/// The most submissions of a rate.
const COUNT_MAX: u32 = 1_000_000;
const UNITS: [(&str, &str, Duration); 3] = [
    ("s", "a second", Duration::from_secs(1)),
    ("m", "a minute", Duration::from_secs(60)),
    ("h", "an hour", Duration::from_secs(3600)),
];

/// A number of submissions in a time, written as `100/s`, `30/m` or `500/h`. So many may also come at
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmissionRate {
    /// 1 to 1,000,000.
    count: u32,
    unit: usize,
}

/// A text that is not a [`SubmissionRate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a rate; write a number from 1 to {COUNT_MAX} and a unit, such as 100/s, 30/m or 500/h"
)]
pub struct SubmissionRateError;

impl FromStr for SubmissionRate {
    type Err = SubmissionRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, unit) = text.trim().split_once('/').ok_or(SubmissionRateError)?;
        let count = count.parse().map_err(|_| SubmissionRateError)?;
        let unit = UNITS.iter().position(|(name, ..)| *name == unit).ok_or(SubmissionRateError)?;
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(SubmissionRateError);
        }
        Ok(Self { count, unit })
    }
}

impl fmt::Display for SubmissionRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.count, UNITS[self.unit].1)
    }
}

/// The buckets of all callers.
#[derive(Debug)]
pub(crate) struct SubmissionLimit {
    rate: Option<SubmissionRate>,
    /// When the bucket of each caller is full again. The others are full.
    full_at: Mutex<HashMap<Name, Instant>>,
}

impl SubmissionLimit {
    /// Without a rate, nobody is limited.
    pub(crate) fn new(rate: Option<SubmissionRate>) -> Self {
        Self { rate, full_at: Mutex::default() }
    }

    /// Takes a submission out of the bucket of a caller. Admins have no limit.
    ///
    /// # Errors
    /// If the bucket is empty: what the caller is told.
    pub(crate) fn take(&self, caller: &Caller, now: Instant) -> Result<(), ErrorReply> {
        let Some(rate) = self.rate.filter(|_| !caller.role.includes(Role::Admin)) else {
            return Ok(());
        };
        let whole = UNITS[rate.unit].2;
        let mut full_at = self.full_at.lock();
        if full_at.len() >= BUCKETS_KEPT && !full_at.contains_key(&caller.name) {
            full_at.retain(|_, at| *at > now);
        }
        let before = full_at.get(&caller.name).copied().unwrap_or(now).max(now);
        let after = before + whole / rate.count;
        let wait = after.duration_since(now).saturating_sub(whole);
        if wait.is_zero() {
            full_at.insert(caller.name.clone(), after);
            return Ok(());
        }
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let message = format!(
            "{} has submitted {rate}, which is the limit (`submissions_per_caller` in manager.toml): submit again in {} s",
            caller.name,
            wait_ms.div_ceil(1000)
        );
        let error = ErrorReply::new(ErrorCode::Overloaded, message);
        Err(ErrorReply { retry_after_ms: Some(wait_ms), ..error })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn limit(rate: &str) -> SubmissionLimit {
        SubmissionLimit::new(Some(rate.parse().unwrap()))
    }

    fn caller(name: &str, role: Role) -> Caller {
        Caller { role, name: name.parse().unwrap(), key: None }
    }

    /// Returns how many of so many submissions are taken.
    fn taken(limit: &SubmissionLimit, caller: &Caller, tries: u32, now: Instant) -> usize {
        (0..tries).filter(|_| limit.take(caller, now).is_ok()).count()
    }

    #[test]
    fn a_rate_is_a_number_and_a_unit() {
        let says = |text: &str| text.parse().map(|rate: SubmissionRate| rate.to_string());
        assert_eq!(says("100/s").unwrap(), "100 in a second");
        assert_eq!(says(" 1/h ").unwrap(), "1 in an hour");
        assert_eq!(says("1000000/m").unwrap(), "1000000 in a minute");
        for text in
            ["", "100", "/s", "0/s", "-1/s", "1.5/s", "1000001/s", "1/d", "1/", "s/1", "1/S"]
        {
            assert!(says(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_caller_may_submit_at_once_what_the_rate_has_and_then_evenly() {
        let (limit, ann, start) = (limit("10/s"), caller("ann", Role::Operator), Instant::now());
        assert_eq!(taken(&limit, &ann, 100, start), 10);
        let error = limit.take(&ann, start).unwrap_err();
        assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Overloaded, Some(101)));
        assert!(error.message.contains("ann has submitted 10 in a second"), "{error}");
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(taken(&limit, &ann, 100, at(99)), 0, "what was refused does not count");
        assert_eq!(taken(&limit, &ann, 100, at(101)), 1);
        assert_eq!(taken(&limit, &ann, 100, at(601)), 5);
        assert_eq!(taken(&limit, &ann, 100, at(60_000)), 10, "no more than a full bucket");
        // Over a long time, it is the rate.
        let long = (0..1_000).map(|tick| taken(&limit, &ann, 3, at(70_000 + 10 * tick)));
        assert_eq!(long.sum::<usize>(), 10 + 99);
    }

    #[test]
    fn each_caller_has_a_limit_and_admins_have_none() {
        let (limit, now) = (limit("2/h"), Instant::now());
        let [ann, bob] = ["ann", "bob"].map(|name| caller(name, Role::Operator));
        assert_eq!([&ann, &bob].map(|caller| taken(&limit, caller, 5, now)), [2, 2]);
        assert_eq!(taken(&limit, &caller("root", Role::Admin), 5, now), 5);
        assert_eq!(taken(&SubmissionLimit::new(None), &ann, 5, now), 5);
    }

    #[test]
    fn full_buckets_take_no_memory() {
        let (limit, start) = (limit("1/s"), Instant::now());
        for number in 0..5_000 {
            let one = caller(&format!("caller-{number}"), Role::Operator);
            let now = start + Duration::from_millis(100 * number);
            assert_eq!(taken(&limit, &one, 2, now), 1);
        }
        assert!(limit.full_at.lock().len() <= BUCKETS_KEPT);
    }
}
