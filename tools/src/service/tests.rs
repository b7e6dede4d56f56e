//! Tests of service files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;

use podmesh_protocol::service::{HealthCheck, RestartWhen};
use podmesh_protocol::spec::{NetworkMode, PullPolicy};

use super::*;

fn nothing(_: &str) -> Option<OsString> {
    None
}

fn made(text: &str) -> Result<ServiceSpec, String> {
    build(text, "web.toml", Path::new(""), &nothing).map_err(|error| {
        assert_eq!(error.exit_code(), 2);
        let said = format!("{error} / {}", error.hint_text().unwrap_or_default());
        assert!(said.starts_with("web.toml"), "{said}");
        assert!(!said.chars().any(char::is_control) && said.len() < 2_000, "{said:?}");
        said
    })
}

const FULL: &str = r#"
name = "web"
image = "nginx:1.27"
command = ["nginx", "-g", "daemon off;"]
entrypoint = ""
env = { MODE = "a\nb" }
workdir = "/srv"
user = "1:2"
mounts = ["/data:/data:ro", "/x:/y"]
network = "bridge"
pull = "always"
volumes = ["data:/var/lib/data", "conf:/conf:ro"]
read_only = true
hostname = "web-1"
extra_hosts = ["db:10.0.0.5", "node:host-gateway"]
cap_add = ["NET_RAW"]
cap_drop = ["ALL"]
security_opt = ["seccomp=unconfined"]
devices = ["/dev/dri/card0:/dev/card:rw"]
shm_size = "128MiB"
init = true
tty = true
stop_signal = "SIGINT"
tmpfs = { "/run" = "size=64m", "/tmp" = "" }
ulimits = { nofile = "1024:4096", nproc = 7, memlock = -1 }
labels = { "traefik.enable" = "true" }
files = { "/etc/app.conf" = "a = 1\n" }
pids = 100
platform = "linux/arm64"
cpus = 0.5
memory = "512MiB"
stop_grace = "3s"
replicas = 3
spread = "zone"
exclusive = true
require = { disk = "fast" }
prefer = { rack = "7" }
resources = { gpu = 0.5, license = 2 }
drain = "1m 30s"
restart = { when = "on_failure", backoff = "2s", backoff_max = "2m" }
[ports]
http = { container = 80, publish = 8080, proxy_protocol = true }
admin = { container = 9000 }
[health]
http = { port = "http", path = "/health", status = 204, headers = { Host = "x" } }
interval = "20s"
timeout = "1s"
start_period = "1min"
failures = 5
[update]
max_surge = 2
min_healthy = 1
healthy_within = "10m"
rollback = false
"#;

#[test]
fn every_key_is_in_the_spec() {
    let spec = made(FULL).unwrap();
    assert_eq!((spec.name.as_str(), spec.replicas, spec.drain_ms), ("web", 3, 90_000));
    assert_eq!((spec.resources.cpu_millis, spec.resources.memory_bytes), (500, 512 << 20));
    assert_eq!(spec.spread.as_ref().map(|name| name.as_str()), Some("zone"));
    let amounts: Vec<u32> = spec.place.resources.values().copied().collect();
    assert_eq!((amounts, spec.place.prefer.len()), (vec![500, 2_000], 1));
    assert!(spec.place.exclusive);
    let RuntimeSpec::Docker(docker) = &spec.run.runtime else { unreachable!("an image is given") };
    assert_eq!((docker.entrypoint.as_deref(), docker.pids), (Some(&[][..]), Some(100)));
    assert_eq!((docker.network, docker.pull), (NetworkMode::Bridge, PullPolicy::Always));
    assert_eq!((docker.mounts.len(), spec.run.stop_grace_ms), (2, 3_000));
    assert_eq!(docker.volumes[0].volume.as_str(), "data");
    assert!(docker.volumes[1].read_only && docker.read_only && docker.init && docker.tty);
    assert_eq!((docker.hostname.as_deref(), docker.extra_hosts.len()), (Some("web-1"), 2));
    assert_eq!((docker.cap_drop.len(), docker.security_opt.len(), docker.devices.len()), (1, 1, 1));
    assert_eq!((docker.shm_size, docker.stop_signal.as_deref()), (Some(128 << 20), Some("SIGINT")));
    assert_eq!((docker.tmpfs["/run"].as_str(), docker.labels.len()), ("size=64m", 1));
    let limits: Vec<_> = docker.ulimits.values().map(|limit| (limit.soft, limit.hard)).collect();
    assert_eq!(limits, [(-1, -1), (1024, 4096), (7, 7)]);
    assert_eq!(spec.run.files["/etc/app.conf"], "a = 1\n");
    let http = &spec.ports[&"http".parse().unwrap()];
    assert_eq!((http.container, http.publish, http.proxy_protocol), (Some(80), Some(8080), true));
    let health = spec.health.as_ref().unwrap();
    assert_eq!((health.interval_ms, health.timeout_ms), (20_000, 1_000));
    assert_eq!((health.start_period_ms, health.failures), (60_000, 5));
    let HealthCheck::Http { path, status, headers, .. } = &health.check else {
        unreachable!("an HTTP check is given")
    };
    assert_eq!((path.as_str(), *status, headers["Host"].as_str()), ("/health", Some(204), "x"));
    assert_eq!(spec.restart.when, RestartWhen::OnFailure);
    assert_eq!((spec.restart.backoff_ms, spec.restart.backoff_ms_max), (2_000, 120_000));
    assert_eq!((spec.update.max_surge, spec.update.min_healthy), (2, Some(1)));
    assert_eq!((spec.update.healthy_within_ms, spec.update.rollback), (600_000, false));
}

#[test]
fn a_written_spec_can_be_read_again() {
    for text in [
        FULL,
        "name = \"a\"\ncommand = [\"x\"]",
        "name = \"a\"\ncommand = [\"x\"]\nreplicas = 0\nhealth = { none = true, failures = 1 }",
        "name = \"a\"\nimage = \"x\"\nentrypoint = [\"b\", \"c\"]\nhealth.command = [\"d\"]",
        "name = \"a\"\ncommand = [\"x\"]\nports.a = {}\nhealth.tcp = \"a\"\nmemory = 1000001",
    ] {
        let spec = made(text).unwrap();
        let written = to_toml(&spec).unwrap();
        assert_eq!(made(&written).unwrap(), spec, "{written}");
    }
    let plain = to_toml(&made("name = \"a\"\ncommand = [\"x\"]").unwrap()).unwrap();
    assert_eq!(plain, "name = \"a\"\ncommand = [\"x\"]\nreplicas = 1\ncpus = 1\n");
}

#[test]
fn what_is_not_given_has_its_default() {
    let spec = made("name = \"a\"\nimage = \"x\"").unwrap();
    assert_eq!((spec.replicas, spec.health, spec.drain_ms), (1, None, 10_000));
    assert_eq!(spec.update, Default::default());
    let word = made("name = \"a\"\nimage = \"x\"\nrestart = \"never\"").unwrap();
    assert_eq!((word.restart.when, word.restart.backoff_ms), (RestartWhen::Never, 1_000));
    let long = made("name = \"a\"\nimage = \"x\"\nrestart = { backoff = \"10m\" }").unwrap();
    assert_eq!(long.restart.backoff_ms_max, 600_000);
}

#[test]
fn an_error_names_the_file_the_line_and_the_key() {
    let base = "name = \"web\"\nimage = \"nginx\"\n";
    for (lines, says) in [
        ("replicas = -1", &["line 3 (replicas = -1)", "0 to 1000", "REPLICAS_MAX"][..]),
        ("replicas = 1001", &["line 3", "REPLICAS_MAX"]),
        ("replicas = \"many\"", &["line 3", "REPLICAS_MAX"]),
        ("ports.http = { container = 70000 }", &["line 3", "70000", "1 to 65535"]),
        ("[ports]\nhttp = { container = 80, publish = 0 }", &["line 4", "1 to 65535"]),
        ("[ports]\nhttp = { publish = 80 }", &["line 3", "needs `container`"]),
        ("[ports]\nhttp = { contaner = 80 }", &["line 4", "`ports.http.contaner`", "`container`"]),
        (
            "[ports]\nhttp = { container = 80 }\nHTTP = { container = 81 }",
            &["line 3", "too similar", "PODMESH_PORT_HTTP"],
        ),
        ("[health]\ntcp = \"http\"", &["line 3", "no port `http`"]),
        (
            "[health]\nhttp = { prt = \"x\", port = \"y\" }",
            &["line 4", "prt", "did you mean `port`"],
        ),
        ("[health]\nhttp = { path = \"/\" }", &["line 4", "missing field `port`"]),
        ("[health]\ninterval = \"5s\"", &["line 3", "there is no check", "none = true"]),
        ("[health]\nnone = true\ncommand = [\"x\"]", &["line 3", "more than one check"]),
        ("[health]\ncommand = []", &["line 4 (command = [])", "must not be empty"]),
        ("[health]\nnone = true\nfailures = 0", &["line 5 (failures = 0)", "failures"]),
        ("[health]\nnone = true\nintervall = \"5s\"", &["line 5", "did you mean `interval`"]),
        ("restart = \"sometimes\"", &["line 3", "on_failure"]),
        ("restart = { wen = \"never\" }", &["line 3", "`restart.wen`", "`when`"]),
        ("restart = { when = \"no\" }", &["line 3", "on_failure"]),
        ("[update]\nmax_surge = 0", &["line 3", "min_healthy must be less"]),
        ("[update]\nroll_back = true", &["line 4", "`rollback`"]),
        ("replica = 3", &["line 3", "did you mean `replicas`"]),
        ("timeout = \"5s\"", &["line 3", "`timeout`"]),
        ("replicas = 1\nreplicas = 2", &["line 4", "duplicate key"]),
        ("name = \"other\"", &["line 3", "duplicate key"]),
        ("command = [\"a\\u0000b\"]", &["line 3", "NUL byte"]),
        ("workdir = \"rel\\u001b[31m\"", &["line 3", "absolute", "\\u{1b}"]),
        ("drain = 10", &["line 3", "90s"]),
        ("cpus = 0", &["line 3", "above 0"]),
        ("env = { \"A=B\" = \"x\" }", &["line 3", "contains `=`"]),
        ("mounts = [\"/a:/b/../c\"]", &["line 3", ".."]),
        ("spread = \"a b\"", &["line 3", "' '"]),
        ("volumes = [\"/a:/b\"]", &["line 3", "`mounts`"]),
        ("ulimits = { nofiles = 5 }", &["line 3", "nofile"]),
        ("ulimits = { nofile = \"many\" }", &["line 3", "1024:4096"]),
        ("labels = { \"podmesh.job\" = \"1\" }", &["line 3", "podmesh."]),
        ("files = { \"app.conf\" = \"\" }", &["line 3", "absolute"]),
        ("shm_size = 0", &["line 3", "MEMORY_BYTES_MAX"]),
    ] {
        let said = made(&format!("{base}{lines}\n")).unwrap_err();
        for part in says {
            assert!(said.contains(part), "{lines}: {said:?} does not say {part:?}");
        }
    }
    for (text, says) in [
        ("", "has no name"),
        ("name = \"web\"", "nothing to run"),
        ("name = \"web\"\ncommand = [\"\"]", "nothing to run"),
        ("name = \"a/b\"\nimage = \"x\"", "'/'"),
        ("name = \"a\\u001b\"\nimage = \"x\"", "line 1"),
        ("name = \"a\"\ncommand = [\"x\"]\nuser = \"me\"", "line 3 (user = \"me\"): `user` is for"),
        ("name = \"a\"\ncommand = [\"x\"]\nmounts = [\"/a:/b\"]", "`mounts` is for"),
        ("name = \"a\"\ncommand = [\"x\"]\nports.http = { container = 1 }", "PODMESH_PORT_HTTP"),
        ("name: web\nimage: nginx\n", "looks like YAML"),
        ("services:\n  web:\n    image: nginx\n", "looks like YAML"),
        ("{\"name\": \"web\"}", "looks like JSON"),
        ("name = \"a\u{0}\"", "line 1"),
        ("\u{1b}[31m", "line 1"),
    ] {
        let said = made(text).unwrap_err();
        assert!(said.contains(says), "{text:?}: {said:?} does not say {says:?}");
    }
}

#[test]
fn the_environment_can_come_from_files_beside_the_service_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("more.env"), "A=0\nB=2\n").unwrap();
    let path = folder.path().join("web.toml");
    let text = "name = \"a\"\nimage = \"x\"\nenv_file = \"more.env\"\nenv.A = \"1\"\n";
    std::fs::write(&path, text).unwrap();
    let spec = read(&path, &nothing).unwrap();
    assert_eq!(spec.run.env.values().collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn a_difference_names_its_keys_and_lines() {
    let before = made(FULL).unwrap();
    let mut after = before.clone();
    after.replicas = 5;
    after.health = None;
    after.run.command.clear();
    assert_eq!(changed_keys(&before, &after), ["command", "health", "replicas"]);
    let diff = unified(Some(&before), &after).unwrap();
    assert!(diff.starts_with("--- now\n+++ new\n@@"), "{diff}");
    assert!(diff.contains("\n-replicas = 3\n+replicas = 5\n"), "{diff}");
    assert!(unified(None, &after).unwrap().contains("\n+name = \"web\"\n"));
    assert_eq!(unified(Some(&before), &before).unwrap(), "");
}
