//! The values that only services have, and how values are written to TOML.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use podmesh_protocol::limits::REPLICAS_MAX;
use serde::{Serialize, Serializer};

use crate::values::{
    Amount, Cpus, MountText, Size, Span, UlimitText, ValueError, VolumeText, deserialize_as_text,
};

/// A port: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortNumber(pub(crate) u16);

impl FromStr for PortNumber {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(0) | Err(_) => Err(ValueError::new("not a port; a port is 1 to 65535")),
            Ok(port) => Ok(Self(port)),
        }
    }
}

/// A number of replicas: 0 to [`REPLICAS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replicas(pub(crate) u32);

impl FromStr for Replicas {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(number) if number <= REPLICAS_MAX => Ok(Self(number)),
            _ => {
                let why =
                    format!("not a number of replicas from 0 to {REPLICAS_MAX} (REPLICAS_MAX)");
                Err(ValueError::new(why))
            }
        }
    }
}

deserialize_as_text! {
    PortNumber, true, "a port such as 8080";
    Replicas, true, "a number of replicas such as 3";
}

impl Span {
    /// Returns the span of this number of milliseconds.
    pub(crate) fn of_ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_millis(self.0, serializer)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_millis(self.0, serializer)
    }
}

/// Writes thousandths as a number: `2` or `0.5`.
fn serialize_millis<S: Serializer>(millis: u32, serializer: S) -> Result<S::Ok, S::Error> {
    match millis % 1000 {
        0 => serializer.serialize_u32(millis / 1000),
        _ => serializer.serialize_f64(f64::from(millis) / 1000.0),
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            // Only without a remainder: the text means exactly this size.
            if self.0 > 0 && self.0.is_multiple_of(unit) {
                return serializer.collect_str(&format_args!("{}{name}", self.0 / unit));
            }
        }
        serializer.serialize_u64(self.0)
    }
}

impl Serialize for MountText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mount = &self.0;
        let mode = if mount.read_only { ":ro" } else { "" };
        serializer.collect_str(&format_args!("{}:{}{mode}", mount.source, mount.target))
    }
}

impl Serialize for VolumeText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let volume = &self.0;
        let mode = if volume.read_only { ":ro" } else { "" };
        serializer.collect_str(&format_args!("{}:{}{mode}", volume.volume, volume.target))
    }
}

impl Serialize for UlimitText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let limit = &self.0;
        if limit.soft == limit.hard {
            return serializer.serialize_i64(limit.soft);
        }
        serializer.collect_str(&format_args!("{}:{}", limit.soft, limit.hard))
    }
}

impl Serialize for PortNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0)
    }
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}
