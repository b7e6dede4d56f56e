//! The trace that a job belongs to, as in W3C Trace Context:
//! <https://www.w3.org/TR/trace-context/#traceparent-header>

use core::fmt;
use core::str::FromStr;

use data_encoding::HEXLOWER;

/// The environment variable with the `traceparent` of a task. The one in a job's own
/// [`env`](crate::spec::RunSpec::env) is that of the job.
pub const TRACEPARENT: &str = "TRACEPARENT";

/// The bytes of a `traceparent` of version 00.
const TEXT_BYTES: usize = 55;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// A position in a trace: its caller's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not zero.
    pub trace: [u8; 16],
    /// The span of the caller; not zero.
    pub span: [u8; 8],
    /// The flags.
    pub flags: u8,
}

impl TraceParent {
    /// Returns whether the caller records the trace.
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{}-{}-{flags:02x}", HEXLOWER.encode(trace), HEXLOWER.encode(span))
    }
}

/// An error for a text that is not a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a `traceparent` of W3C Trace Context, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)]
pub struct ParseTraceParentError;

impl FromStr for TraceParent {
    type Err = ParseTraceParentError;

    /// Reads also versions after 00, which begin in the same way.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (head, rest) = text.split_at_checked(TEXT_BYTES).ok_or(ParseTraceParentError)?;
        let mut parts = head.split('-');
        let mut part = || parts.next().ok_or(ParseTraceParentError);
        let [version] = bytes(part()?)?;
        let parent =
            Self { trace: bytes(part()?)?, span: bytes(part()?)?, flags: bytes::<1>(part()?)?[0] };
        let whole =
            if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
        if !whole || version == u8::MAX || parent.trace == [0; 16] || parent.span == [0; 8] {
            return Err(ParseTraceParentError);
        }
        Ok(parent)
    }
}

/// Returns the bytes of a text in hexadecimal, of lower case.
fn bytes<const N: usize>(text: &str) -> Result<[u8; N], ParseTraceParentError> {
    let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ParseTraceParentError)?;
    bytes.try_into().map_err(|_| ParseTraceParentError)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let parent: TraceParent = GOOD.parse().unwrap();
        assert_eq!(parent.to_string(), GOOD);
        assert!(parent.sampled());
        assert_eq!(parent.span, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        let later = GOOD.replacen("00-", "01-", 1) + "-more";
        assert_eq!(later.parse::<TraceParent>().unwrap(), parent);
        assert!(!GOOD.replace("-01", "-02").parse::<TraceParent>().unwrap().sampled());
    }

    #[test]
    fn what_is_not_a_traceparent_is_refused() {
        let zero_trace = GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = GOOD.replace("00f067aa0ba902b7", &"0".repeat(16));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("01{}more", &GOOD[2..]),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &zero_trace,
            &zero_span,
            &"ä".repeat(40),
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(ParseTraceParentError), "{bad}");
        }
    }
}
