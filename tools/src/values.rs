//! The values that users write: cpus, sizes, times, array ranges, labels, mounts. The command line,
//! the environment and TOML files accept the same texts.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{
    ARRAY_TASKS_MAX, CPU_MILLIS_MAX, DURATION_MS_MAX, MEMORY_BYTES_MAX, NAME_BYTES_MAX,
    PRIORITY_MAX, RETRIES_MAX,
};
use podmesh_protocol::spec::{ArrayRange, Mount, Ulimit, VolumeMount, validate_label_value};
use serde::de::{self, Visitor};

/// An invalid value: what is wrong with it, and an example of a right one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ValueError(String);

impl ValueError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Thousandths of a core, written as cores: `2`, `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) u32);

impl Cpus {
    fn from_cores(cores: f64) -> Result<Self, ValueError> {
        let most = f64::from(CPU_MILLIS_MAX);
        if cores.is_nan() || cores <= 0.0 {
            return Err(ValueError::new("a number of cores above 0 is needed, such as 2 or 0.5"));
        }
        let millis = (cores * 1000.0).round();
        if millis > most {
            let why = format!("over the limit of {} cores (CPU_MILLIS_MAX)", CPU_MILLIS_MAX / 1000);
            return Err(ValueError::new(why));
        }
        if millis < 1.0 {
            return Err(ValueError::new("the minimum is 0.001 of a core"));
        }
        Ok(Self(millis as u32))
    }
}

impl FromStr for Cpus {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let cores = text.trim().parse::<f64>().map_err(|_| {
            ValueError::new("not a number; a number of cores is needed, such as 2 or 0.5")
        })?;
        Self::from_cores(cores)
    }
}

/// Bytes, written as `512MiB`, `2G` or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let size: ByteSize = text.trim().parse().map_err(|_| {
            ValueError::new(
                "not a size; write for example 512MiB, 1.5GiB, 2GB or a number of bytes",
            )
        })?;
        if size.as_u64() > MEMORY_BYTES_MAX {
            let most = ByteSize::b(MEMORY_BYTES_MAX);
            return Err(ValueError::new(format!("over the limit of {most} (MEMORY_BYTES_MAX)")));
        }
        Ok(Self(size.as_u64()))
    }
}

/// A duration, written as `90s`, `5min`, `1h 30min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// Returns milliseconds; parsing has checked the range.
    pub(crate) fn ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = humantime::parse_duration(text.trim()).map_err(|why| {
            ValueError::new(format!("{why}; write for example 500ms, 90s, 5min or 1h"))
        })?;
        if time.as_millis() > u128::from(DURATION_MS_MAX) {
            return Err(ValueError::new("over the limit of 366 days (DURATION_MS_MAX)"));
        }
        if time > Duration::ZERO && time < Duration::from_millis(1) {
            return Err(ValueError::new("the minimum is 1ms"));
        }
        Ok(Self(time))
    }
}

/// The address of the HTTP API, written `127.0.0.1:7771`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpAddress(pub(crate) Option<SocketAddr>);

impl FromStr for HttpAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|why| {
            ValueError::new(format!(
                "{why}; write an address and a port, such as 127.0.0.1:7771, or off"
            ))
        })?;
        Ok(Self(Some(address)))
    }
}

/// The address of an agent's metrics: `9100` on loopback, `10.0.0.5:9100`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetricsAddress(pub(crate) Option<SocketAddr>);

impl FromStr for MetricsAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let on_loopback = text.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into());
        let address = on_loopback.or_else(|_| text.parse()).map_err(|why| {
            ValueError::new(format!(
                "{why}; write a port of loopback such as 9100, an address and a port such as 10.0.0.5:9100, or off"
            ))
        })?;
        Ok(Self(Some(address)))
    }
}

/// The tasks of an array, written `A-B`, or `N` for `1-N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Array(pub(crate) ArrayRange);

impl FromStr for Array {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let index = |digits: &str| {
            let digits = digits.trim();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                let what = if digits.is_empty() { "a missing number" } else { digits };
                let why = format!("{what} is not an index; write N or A-B, such as 100 or 1-100");
                return Err(ValueError::new(why));
            }
            digits.parse::<u32>().map_err(|_| {
                ValueError::new(format!("{digits} is over the highest index of {}", u32::MAX))
            })
        };
        let range = match text.split_once('-') {
            Some((first, last)) => ArrayRange { first: index(first)?, last: index(last)? },
            None => ArrayRange { first: 1, last: index(text)? },
        };
        if range.tasks() == 0 {
            let why = "contains no task; write N or A-B with A not over B, such as 100 or 1-100";
            return Err(ValueError::new(why));
        }
        if range.tasks() > u64::from(ARRAY_TASKS_MAX) {
            return Err(ValueError::new(format!(
                "{} tasks are over the limit of {ARRAY_TASKS_MAX} (ARRAY_TASKS_MAX)",
                range.tasks()
            )));
        }
        Ok(Self(range))
    }
}

/// A label with its value, written `gpu=a100`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label(pub(crate) Name, pub(crate) String);

impl FromStr for Label {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            ValueError::new("there is no `=`; write NAME=VALUE, such as gpu=a100")
        })?;
        let name = name.parse().map_err(|why| ValueError::new(format!("{why}")))?;
        validate_label_value("label", value).map_err(|why| ValueError::new(why.to_string()))?;
        Ok(Self(name, value.to_owned()))
    }
}

/// A mount, written `SOURCE:TARGET`, with `:ro` at the end for read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountText(pub(crate) Mount);

/// How much a task needs of a named resource, in thousandths; written `2` or `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amount(pub(crate) u32);

impl FromStr for Amount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            ValueError::new(format!(
                "`{text}` is no amount; write a whole number such as 2, or a part of one such as 0.5"
            ))
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(part) || text.ends_with('.') {
            return Err(wrong());
        }
        if part.len() > 3 {
            return Err(ValueError::new(format!(
                "`{text}` has more than three digits after the point"
            )));
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let part: u32 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
        whole
            .checked_mul(1_000)
            .and_then(|millis| millis.checked_add(part))
            .map(Self)
            .ok_or_else(wrong)
    }
}

/// What a task needs of a named resource, written `gpu=0.5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceText(pub(crate) Name, pub(crate) Amount);

impl FromStr for ResourceText {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, amount) = text
            .split_once('=')
            .ok_or_else(|| ValueError::new("there is no `=`; write NAME=AMOUNT, such as gpu=2"))?;
        let name = name.parse().map_err(|why| ValueError::new(format!("{why}")))?;
        Ok(Self(name, amount.parse()?))
    }
}

/// A change of a node's label: `NAME=VALUE` sets it, `NAME-` takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LabelChange {
    Set(Name, String),
    Remove(Name),
}

impl fmt::Display for LabelChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(label, value) => write!(f, "{label}={value}"),
            Self::Remove(label) => write!(f, "{label}-"),
        }
    }
}

impl FromStr for LabelChange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('=') {
            let Label(label, value) = text.parse()?;
            return Ok(Self::Set(label, value));
        }
        let Some(label) = text.strip_suffix('-') else {
            return Err(ValueError::new(
                "write LABEL=VALUE to set a label, LABEL- to take it back",
            ));
        };
        label.parse().map(Self::Remove).map_err(|why| ValueError::new(format!("{why}")))
    }
}

impl FromStr for MountText {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "write SOURCE:TARGET or SOURCE:TARGET:ro, such as /data:/data:ro";
        let (source, target, read_only) = mount_parts(text).ok_or_else(|| ValueError::new(form))?;
        if !source.starts_with('/') {
            let why = format!(
                "`{source}` is not an absolute path: a mount is a path on the node (a named volume \
                 is written with --volume, or in `volumes`)"
            );
            return Err(ValueError::new(why));
        }
        Ok(Self(Mount { source: source.into(), target: target.into(), read_only }))
    }
}

/// Splits `SOURCE:TARGET[:ro|:rw]`. The last part is whether it is read-only.
fn mount_parts(text: &str) -> Option<(&str, &str, bool)> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts[..] {
        [source, target] | [source, target, "rw"] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => return None,
    };
    (!source.is_empty() && !target.is_empty()).then_some((source, target, read_only))
}

/// A named volume in a container, written `NAME:TARGET`, with `:ro` at the end for read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeText(pub(crate) VolumeMount);

impl FromStr for VolumeText {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "write NAME:TARGET or NAME:TARGET:ro, such as data:/var/lib/data";
        let (volume, target, read_only) = mount_parts(text).ok_or_else(|| ValueError::new(form))?;
        if volume.starts_with('/') {
            let why = format!(
                "`{volume}` is a path, and a volume has a name (a path on the node is written with \
                 --mount, or in `mounts`)"
            );
            return Err(ValueError::new(why));
        }
        let volume = volume.parse().map_err(|why| ValueError::new(format!("{why}")))?;
        Ok(Self(VolumeMount { volume, target: target.into(), read_only }))
    }
}

/// A folder in memory, written `PATH`, or `PATH:OPTIONS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TmpfsText(pub(crate) String, pub(crate) String);

impl FromStr for TmpfsText {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        if !path.starts_with('/') {
            let why = "write PATH or PATH:OPTIONS with an absolute path, such as /run:size=64m";
            return Err(ValueError::new(why));
        }
        Ok(Self(path.into(), options.into()))
    }
}

/// A limit, written `SOFT:HARD`, or as one number for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UlimitText(pub(crate) Ulimit);

impl FromStr for UlimitText {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let why = "not a limit; write a number or SOFT:HARD, such as 1024 or 1024:4096; -1 means unlimited";
            text.trim().parse::<i64>().map_err(|_| ValueError::new(why))
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        Ok(Self(Ulimit { soft: number(soft)?, hard: number(hard)? }))
    }
}

/// A limit with its name, written `NAME=SOFT[:HARD]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedUlimit(pub(crate) String, pub(crate) UlimitText);

impl FromStr for NamedUlimit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, limit) = text.split_once('=').ok_or_else(|| {
            ValueError::new("there is no `=`; write NAME=SOFT[:HARD], such as nofile=1024:4096")
        })?;
        Ok(Self(name.into(), limit.parse()?))
    }
}

/// A label of a container with its value, written `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerLabel(pub(crate) String, pub(crate) String);

impl FromStr for ContainerLabel {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As in Docker, a label without a value has an empty one.
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        Ok(Self(name.into(), value.into()))
    }
}

/// Makes a name from any text: invalid characters become `-`. Returns `None` if nothing is left.
pub(crate) fn made_name(text: &str) -> Option<Name> {
    let mut valid: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .collect();
    valid.truncate(NAME_BYTES_MAX);
    valid.parse().ok()
}

/// Parses a job's priority.
pub(crate) fn priority(text: &str) -> Result<i32, ValueError> {
    let most = i64::from(PRIORITY_MAX);
    match text.parse::<i64>() {
        Ok(n) if (-most..=most).contains(&n) => Ok(n as i32),
        Ok(_) => Err(ValueError::new(format!("not between -{most} and {most} (PRIORITY_MAX)"))),
        Err(_) => Err(ValueError::new("not a whole number")),
    }
}

/// Parses a number of retries.
pub(crate) fn retries(text: &str) -> Result<u32, ValueError> {
    match text.parse::<u64>() {
        Ok(n) if n <= u64::from(RETRIES_MAX) => Ok(n as u32),
        Ok(_) => Err(ValueError::new(format!("over the limit of {RETRIES_MAX} (RETRIES_MAX)"))),
        Err(_) => Err(ValueError::new("not a whole number of 0 or more")),
    }
}

/// Reads a value from TOML: a text, or a number where that is allowed.
pub(crate) struct ValueVisitor<T> {
    pub(crate) expecting: &'static str,
    pub(crate) numbers: bool,
    pub(crate) kind: std::marker::PhantomData<T>,
}

impl<T: FromStr<Err = ValueError>> Visitor<'_> for ValueVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        if self.numbers {
            self.visit_str(&number.to_string())
        } else {
            Err(E::invalid_type(de::Unexpected::Signed(number), &self))
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        if self.numbers {
            self.visit_str(&number.to_string())
        } else {
            Err(E::invalid_type(de::Unexpected::Unsigned(number), &self))
        }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        if self.numbers {
            self.visit_str(&number.to_string())
        } else {
            Err(E::invalid_type(de::Unexpected::Float(number), &self))
        }
    }
}

/// Reads these types from TOML as the command line does.
macro_rules! deserialize_as_text {
    ($($kind:ty, $numbers:literal, $expecting:literal;)*) => {$(
        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($crate::values::ValueVisitor::<Self> {
                    expecting: $expecting,
                    numbers: $numbers,
                    kind: std::marker::PhantomData,
                })
            }
        }
    )*};
}

pub(crate) use deserialize_as_text;

deserialize_as_text! {
    Cpus, true, "a number of cores such as 2 or 0.5";
    Amount, true, "an amount such as 2 or 0.5";
    Size, true, "a size such as \"512MiB\"";
    HttpAddress, false, "an address such as \"127.0.0.1:7771\", or \"off\"";
    MetricsAddress, true, "a port such as 9100, an address such as \"10.0.0.5:9100\", or \"off\"";
    Span, false, "a duration such as \"90s\"";
    Array, true, "a number of tasks, or a range such as \"1-100\"";
    MountText, false, "a mount such as \"/data:/data:ro\"";
    VolumeText, false, "a volume such as \"data:/var/lib/data\"";
    UlimitText, true, "a limit such as 1024, or \"1024:4096\"";
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn refused<T: FromStr<Err = ValueError> + fmt::Debug>(text: &str, says: &str) {
        let said = text.parse::<T>().unwrap_err().to_string();
        assert!(said.contains(says), "{text:?}: {said:?} does not say {says:?}");
    }

    #[test]
    fn a_port_alone_is_on_loopback() {
        let address = |text: &str| text.parse::<MetricsAddress>().unwrap().0;
        assert_eq!(address("9100"), Some("127.0.0.1:9100".parse().unwrap()));
        assert_eq!(address("0.0.0.0:9100"), Some("0.0.0.0:9100".parse().unwrap()));
        assert_eq!(address("[::1]:9100"), Some("[::1]:9100".parse().unwrap()));
        assert_eq!(address("off"), None);
        for text in ["", "on", "host:1", "99999"] {
            refused::<MetricsAddress>(text, "such as 9100");
        }
    }

    #[test]
    fn cpus_are_cores_above_zero() {
        assert_eq!("1".parse(), Ok(Cpus(1000)));
        assert_eq!("0.5".parse(), Ok(Cpus(500)));
        assert_eq!("0.001".parse(), Ok(Cpus(1)));
        for text in ["0", "-1", "NaN", "-0", "-inf"] {
            refused::<Cpus>(text, "above 0");
        }
        for text in ["1e99", "inf", "1000.1"] {
            refused::<Cpus>(text, "CPU_MILLIS_MAX");
        }
        refused::<Cpus>("0.0001", "0.001");
        for text in ["", "two", "1,5", "0x10"] {
            refused::<Cpus>(text, "such as 2 or 0.5");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!("512MiB".parse(), Ok(Size(512 << 20)));
        assert_eq!("2 GB".parse(), Ok(Size(2_000_000_000)));
        assert_eq!("1.5GiB".parse(), Ok(Size(3 << 29)));
        assert_eq!("0".parse(), Ok(Size(0)));
        for text in ["12 parsecs", "", "-1", "NaN", "MiB", "1..5GiB", "1e3"] {
            refused::<Size>(text, "512MiB");
        }
        for text in ["99999999PiB", "18446744073709551615", "2PiB"] {
            refused::<Size>(text, "MEMORY_BYTES_MAX");
        }
    }

    #[test]
    fn spans_have_units() {
        assert_eq!("90s".parse::<Span>().unwrap().ms(), 90_000);
        assert_eq!("1h 30min".parse::<Span>().unwrap().ms(), 5_400_000);
        for text in ["90", "", "-1s", "1 fortnight"] {
            refused::<Span>(text, "90s");
        }
        refused::<Span>("400days", "366 days");
        refused::<Span>("1us", "minimum");
    }

    #[test]
    fn arrays_contain_at_least_one_task_and_not_too_many() {
        assert_eq!("1-1000000".parse(), Ok(Array(ArrayRange { first: 1, last: 1_000_000 })));
        assert_eq!("7".parse(), Ok(Array(ArrayRange { first: 1, last: 7 })));
        assert_eq!("0-9".parse(), Ok(Array(ArrayRange { first: 0, last: 9 })));
        for text in ["0", "5-2"] {
            refused::<Array>(text, "contains no task");
        }
        for text in ["10000001", "0-4294967295"] {
            refused::<Array>(text, "ARRAY_TASKS_MAX");
        }
        for text in ["", "-1", "1-", "a-b", "1-2-3", "1.5", "+3"] {
            refused::<Array>(text, "N or A-B");
        }
        refused::<Array>("99999999999", "highest index");
    }

    #[test]
    fn labels_and_mounts_have_their_form() {
        let label = Label("gpu".parse().unwrap(), "a=100".into());
        assert_eq!("gpu=a=100".parse(), Ok(label));
        refused::<Label>("gpu", "no `=`");
        refused::<Label>("g/p=1", "not allowed");
        refused::<Label>("gpu=\n", "control");

        let mount = "/a:/b:ro".parse::<MountText>().unwrap().0;
        assert_eq!(
            (mount.source.as_str(), mount.target.as_str(), mount.read_only),
            ("/a", "/b", true)
        );
        assert!(!"/a:/b".parse::<MountText>().unwrap().0.read_only);
        for text in ["/a", "/a:", ":/b", "/a:/b:rx", "/a:/b:ro:x", ""] {
            refused::<MountText>(text, "SOURCE:TARGET");
        }
        refused::<MountText>("a:/b", "absolute");
    }

    #[test]
    fn names_can_be_made_from_any_text() {
        let made = |text: &str| made_name(text).map(String::from);
        assert_eq!(made("a b/ü.sh").as_deref(), Some("a-b--.sh"));
        assert_eq!(made("..-x").as_deref(), Some("x"));
        assert_eq!(made("[").or(made("")), None);
        assert_eq!(made(&"x".repeat(10_000)).unwrap().len(), NAME_BYTES_MAX);
    }

    #[test]
    fn priorities_and_retries_have_limits() {
        assert_eq!(priority("-3"), Ok(-3));
        assert!(priority("1001").unwrap_err().to_string().contains("PRIORITY_MAX"));
        assert!(priority("1.5").is_err());
        assert_eq!(retries("3"), Ok(3));
        assert!(retries("1001").unwrap_err().to_string().contains("RETRIES_MAX"));
        assert!(retries("-1").is_err());
    }

    #[test]
    fn toml_accepts_the_same_texts_and_plain_numbers() {
        #[derive(Debug, serde::Deserialize)]
        struct Table {
            cpus: Option<Cpus>,
            memory: Option<Size>,
            timeout: Option<Span>,
            array: Option<Array>,
        }
        let table: Table =
            toml::from_str("cpus = 0.5\nmemory = \"1MiB\"\ntimeout = \"2s\"\narray = 3").unwrap();
        assert_eq!(table.cpus, Some(Cpus(500)));
        assert_eq!(table.memory, Some(Size(1 << 20)));
        assert_eq!(table.timeout.unwrap().ms(), 2000);
        assert_eq!(table.array.unwrap().0.last, 3);
        for (text, says) in [
            ("cpus = nan", "above 0"),
            ("cpus = -1", "above 0"),
            ("cpus = true", "number of cores"),
            ("memory = -5", "512MiB"),
            ("timeout = 90", "duration"),
            ("array = 0", "contains no task"),
            ("array = -3", "N or A-B"),
        ] {
            let said = toml::from_str::<Table>(text).unwrap_err().to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
