//! The values that only compose files have.

use std::str::FromStr;

use podmesh_protocol::limits::MEMORY_BYTES_MAX;

use crate::values::ValueError;

/// Bytes, written as Docker does: `64m` and `64mb` are 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

impl FromStr for Bytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || ValueError::new("not a size; write for example 512m, 1.5g or a number of bytes");
        let text = text.trim().to_ascii_lowercase();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let shift = match unit.trim() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(wrong()),
        };
        let bytes = number * f64::from(2_u32).powi(shift);
        if bytes > MEMORY_BYTES_MAX as f64 {
            return Err(ValueError::new("over the limit of 1 PiB (MEMORY_BYTES_MAX)"));
        }
        Ok(Self(bytes as u64))
    }
}

/// One port, or several in a row: `8000-8002`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Ports {
    pub(super) fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

impl FromStr for Ports {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(ValueError::new("not a port; a port is 1 to 65535")),
            Ok(port) => Ok(port),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(ValueError::new("the range ends before it begins"));
        }
        Ok(Self { first, last })
    }
}

/// Splits a command as a shell does, without running one.
pub(super) fn words(text: &str) -> Result<Vec<String>, ValueError> {
    shlex::split(text).ok_or_else(|| ValueError::new("a quote has no end"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_of_docker() {
        for (text, bytes) in
            [("64m", 64 << 20), ("1GB", 1 << 30), ("1.5k", 1536), ("7", 7), ("7b", 7)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "m", "-1", "1x", "1e3", "9999999t", "NaN"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn ports_can_be_a_range() {
        assert_eq!("80".parse(), Ok(Ports { first: 80, last: 80 }));
        assert_eq!("80-82".parse::<Ports>().unwrap().count(), 3);
        for text in ["", "0", "65536", "82-80", "a-b", "1-2-3"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }

    #[test]
    fn commands_are_split_as_a_shell_does() {
        assert_eq!(words("sh -c 'a b' \"c d\"").unwrap(), ["sh", "-c", "a b", "c d"]);
        assert!(words("a 'b").is_err());
    }
}
