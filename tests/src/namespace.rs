//! A network namespace with one link to this machine, which can be cut. Needs root, `ip` and
//! `iptables`.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

/// The direction in which a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// From the namespace to this machine.
    Out,
    /// From this machine to the namespace.
    In,
    /// Both directions.
    Both,
}

impl Cut {
    /// All directions.
    pub const ALL: [Self; 3] = [Self::Out, Self::In, Self::Both];

    fn chains(self) -> &'static [&'static str] {
        match self {
            Self::Out => &["OUTPUT"],
            Self::In => &["INPUT"],
            Self::Both => &["OUTPUT", "INPUT"],
        }
    }
}

/// A namespace with its link. Removed when dropped.
pub struct Namespace {
    name: String,
    number: u8,
}

impl Namespace {
    /// Creates a namespace. Prints a message and returns `None` if that is not possible; panics
    /// instead with `PODMESH_TEST_DOCKER=required`.
    pub fn make() -> Option<Self> {
        static LAST: AtomicU8 = AtomicU8::new(0);
        // Other test processes get other numbers.
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let number = number.wrapping_add((std::process::id() % 250).to_le_bytes()[0]);
        let this = Self { name: format!("podmesh-{}-{number}", std::process::id()), number };
        if let Err(why) = this.set_up() {
            let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|v| v == "required");
            assert!(!required, "cannot create a network namespace: {why}");
            eprintln!("SKIPPED: cannot create a network namespace: {why}");
            return None;
        }
        Some(this)
    }

    fn set_up(&self) -> Result<(), String> {
        let (host, inner) = (format!("pmh{}", self.number), format!("pmn{}", self.number));
        let (host_ip, inner_ip) = (format!("{}/30", self.host()), format!("{}/30", self.inner()));
        ip(&["netns", "add", &self.name])?;
        ip(&["link", "add", &host, "type", "veth", "peer", "name", &inner])?;
        ip(&["link", "set", &inner, "netns", &self.name])?;
        ip(&["addr", "add", &host_ip, "dev", &host])?;
        ip(&["link", "set", &host, "up"])?;
        ip(&["-n", &self.name, "addr", "add", &inner_ip, "dev", &inner])?;
        ip(&["-n", &self.name, "link", "set", &inner, "up"])?;
        ip(&["-n", &self.name, "link", "set", "lo", "up"])?;
        self.tables(&["-F"])
    }

    /// Returns this machine's address on the link.
    pub fn host(&self) -> IpAddr {
        Ipv4Addr::new(10, 213, self.number, 1).into()
    }

    fn inner(&self) -> IpAddr {
        Ipv4Addr::new(10, 213, self.number, 2).into()
    }

    /// Returns a command that runs inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Silently drops all packets in a direction.
    ///
    /// # Panics
    /// If `iptables` fails.
    pub fn cut(&self, cut: Cut) {
        for chain in cut.chains() {
            self.tables(&["-A", chain, "-j", "DROP"]).unwrap();
        }
    }

    /// Lets all packets pass again.
    ///
    /// # Panics
    /// If `iptables` fails.
    pub fn heal(&self) {
        self.tables(&["-F"]).unwrap();
    }

    fn tables(&self, args: &[&str]) -> Result<(), String> {
        run(self.command("iptables").args(["-w"]).args(args))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // This removes the link too. Either may not exist if the setup failed.
        _ = ip(&["netns", "delete", &self.name]);
        _ = ip(&["link", "delete", &format!("pmh{}", self.number)]);
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    run(Command::new("ip").args(args))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
