//! A network namespace with one link to this machine, which can be cut. Takes root, `ip` and
//! `iptables`.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

/// Which way nothing passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// From the namespace to this machine.
    Out,
    /// From this machine to the namespace.
    In,
    /// Neither way.
    Both,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Out, Self::In, Self::Both];

    fn chains(self) -> &'static [&'static str] {
        match self {
            Self::Out => &["OUTPUT"],
            Self::In => &["INPUT"],
            Self::Both => &["OUTPUT", "INPUT"],
        }
    }
}

/// A namespace; gone when dropped, with the link.
pub struct Namespace {
    name: String,
    number: u8,
}

impl Namespace {
    /// Makes one; none where that is not possible, which is said aloud. With
    /// `PODMESH_TEST_DOCKER=required` that is a failure.
    pub fn make() -> Option<Self> {
        static LAST: AtomicU8 = AtomicU8::new(0);
        // Other test processes have other numbers.
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let number = number.wrapping_add((std::process::id() % 250).to_le_bytes()[0]);
        let this = Self { name: format!("podmesh-{}-{number}", std::process::id()), number };
        if let Err(why) = this.set_up() {
            let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|v| v == "required");
            assert!(!required, "a network namespace cannot be made: {why}");
            eprintln!("LEFT OUT: a network namespace cannot be made: {why}");
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

    /// This machine's address on the link.
    pub fn host(&self) -> IpAddr {
        Ipv4Addr::new(10, 213, self.number, 1).into()
    }

    fn inner(&self) -> IpAddr {
        Ipv4Addr::new(10, 213, self.number, 2).into()
    }

    /// A command that is to run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Drops all packets of a way, without a word to anybody.
    ///
    /// # Panics
    /// When that does not go.
    pub fn cut(&self, cut: Cut) {
        for chain in cut.chains() {
            self.tables(&["-A", chain, "-j", "DROP"]).unwrap();
        }
    }

    /// Lets all pass again.
    ///
    /// # Panics
    /// When that does not go.
    pub fn heal(&self) {
        self.tables(&["-F"]).unwrap();
    }

    fn tables(&self, args: &[&str]) -> Result<(), String> {
        run(self.command("iptables").args(["-w"]).args(args))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The link goes with it. Where it was never made, neither is there.
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
