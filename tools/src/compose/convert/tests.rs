#![expect(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use podmesh_protocol::service::{DependsOn, HealthCheck, RestartWhen, ServiceSpec};
use podmesh_protocol::spec::{DockerSpec, NetworkMode, RuntimeSpec};
use serde_json::{Value, json};

use super::super::{Options, Project, read};
use crate::error::CliResult;

fn here(name: &str) -> Option<OsString> {
    match name {
        "SET" => Some("here".into()),
        "HOME" => Some("/home/anna".into()),
        _ => None,
    }
}

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn shop(folder: &Path) -> CliResult<Project> {
    let options = Options { project: Some("shop".into()), ..Options::default() };
    read(&options, folder, &here)
}

fn project(text: &str) -> CliResult<Project> {
    shop(folder(&[("compose.yaml", text)]).path())
}

/// Converts a file whose only service has these keys.
fn web(keys: &str) -> CliResult<ServiceSpec> {
    let text = format!(
        "services:\n  web:\n    image: nginx\n    {}\nvolumes: {{data: }}\n\
         networks: {{back: , other: {{name: lan}}}}\n",
        keys.replace('\n', "\n    ")
    );
    Ok(project(&text)?.members.remove(0).spec)
}

fn docker(spec: &ServiceSpec) -> &DockerSpec {
    let RuntimeSpec::Docker(docker) = &spec.run.runtime else { unreachable!("not a container") };
    docker
}

/// Returns the spec of a container as JSON, with the keys that are set.
fn container(keys: &str) -> Value {
    serde_json::to_value(docker(&web(keys).unwrap())).unwrap()
}

fn refused(text: &str, says: &[&str]) {
    let said = match project(text) {
        Ok(_) => unreachable!("{text:?} is not refused"),
        Err(error) => format!("{error}; {}", error.hint_text().unwrap_or_default()),
    };
    for says in says {
        assert!(said.contains(says), "{text:?}: {said:?} does not say {says:?}");
    }
}

/// Checks that a service with these keys is refused; `says` begins with the line within them.
fn web_refused(keys: &str, says: &[&str]) {
    let text = format!("services:\n  web:\n    image: x\n    {}\n", keys.replace('\n', "\n    "));
    refused(&text, says);
}

const STACK: &str = "
name: ignored
x-common: &common
  restart: unless-stopped
  networks: [default, back]
services:
  web:
    <<: *common
    image: wordpress:${TAG:-6}
    container_name: front
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
      cache: {condition: service_started, required: false}
    ports: [\"8080:80\"]
    environment:
      DB_HOST: db:3306
      PASSWORD: $$ecret
    deploy: {replicas: 2}
  db:
    <<: *common
    image: mysql:8
    command: --default-authentication-plugin=x 'a b'
    volumes: [\"data:/var/lib/mysql\", /var/log/mysql]
    healthcheck:
      test: [CMD, mysqladmin, ping]
      interval: 1m30s
      retries: 5
    mem_limit: 512m
    cpus: 1.5
  migrate:
    image: migrate
    restart: \"no\"
    depends_on: [db]
  cache:
    image: redis
    profiles: [cache]
volumes:
  data:
networks:
  back:
";

#[test]
fn a_stack_becomes_services_in_the_order_of_their_start() {
    let project = project(STACK).unwrap();
    assert_eq!(project.name.as_str(), "shop");
    let names: Vec<&str> = project.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["db", "migrate", "web"]);
    let [db, migrate, web] = &project.members[..] else { unreachable!("three services") };

    let json = serde_json::to_value(&web.spec).unwrap();
    assert_eq!(json["name"], "shop-web");
    assert_eq!(json["replicas"], 2);
    assert_eq!(json["project"], json!({"name": "shop", "member": "web", "together": true}));
    assert_eq!(json["depends_on"], json!({"shop-db": "healthy", "shop-migrate": "completed"}));
    assert_eq!(json["ports"], json!({"tcp80": {"container": 80, "publish": 8080}}));
    assert_eq!(json["run"]["env"], json!({"DB_HOST": "db:3306", "PASSWORD": "$ecret"}));
    let docker_json = &json["run"]["runtime"]["docker"];
    assert_eq!(docker_json["image"], "wordpress:6");
    let both = json!(["front", "web"]);
    assert_eq!(docker_json["networks"], json!({"shop_back": both, "shop_default": both}));
    assert_eq!(web.spec.restart.when, RestartWhen::Always);

    assert_eq!(db.spec.run.command, ["--default-authentication-plugin=x", "a b"]);
    let json = serde_json::to_value(docker(&db.spec)).unwrap();
    assert_eq!(
        json["volumes"],
        json!([
            {"volume": "shop_data", "target": "/var/lib/mysql", "read_only": false},
            {"volume": "shop_db_var-log-mysql", "target": "/var/log/mysql", "read_only": false},
        ])
    );
    let health = db.spec.health.as_ref().unwrap();
    assert_eq!(health.check, HealthCheck::Command(["mysqladmin", "ping"].map(Into::into).into()));
    assert_eq!((health.interval_ms, health.timeout_ms, health.failures), (90_000, 30_000, 5));
    assert_eq!((db.spec.resources.cpu_millis, db.spec.resources.memory_bytes), (1500, 512 << 20));

    // The default of compose.
    assert_eq!(migrate.spec.restart.when, RestartWhen::Never);
    assert_eq!(migrate.spec.resources.cpu_millis, 500);
    assert_eq!(migrate.spec.depends_on.values().collect::<Vec<_>>(), [&DependsOn::Started]);

    let volumes: Vec<&str> = project.volumes.iter().map(|name| name.as_str()).collect();
    assert_eq!(volumes, ["shop_data", "shop_db_var-log-mysql"]);
    let notes = project.notes.join("\n");
    for part in [
        "line 10 (services.web.container_name): podmesh names containers itself",
        "line 14 (services.web.depends_on.cache): the service is not there",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

#[test]
fn options_of_a_container_are_taken_over() {
    for (keys, key, value) in [
        ("entrypoint: [a, b]", "entrypoint", json!(["a", "b"])),
        ("entrypoint: ''", "entrypoint", json!([])),
        ("user: 1000:1000", "user", json!("1000:1000")),
        ("init: true", "init", json!(true)),
        ("tty: true", "tty", json!(true)),
        ("read_only: true", "read_only", json!(true)),
        ("hostname: h", "hostname", json!("h")),
        ("cap_add: [CAP_NET_RAW, sys_nice]", "cap_add", json!(["NET_RAW", "SYS_NICE"])),
        ("cap_drop: [ALL]", "cap_drop", json!(["ALL"])),
        (
            "security_opt: [\"no-new-privileges:true\", seccomp=x]",
            "security_opt",
            json!(["seccomp=x"]),
        ),
        ("devices: [/dev/fuse]", "devices", json!(["/dev/fuse"])),
        ("shm_size: 64m", "shm_size", json!(64 << 20)),
        ("pids_limit: 10", "pids", json!(10)),
        (
            "ulimits: {nofile: 1024, nproc: {soft: 1, hard: 2}}",
            "ulimits",
            json!({"nofile": {"soft": 1024, "hard": 1024}, "nproc": {"soft": 1, "hard": 2}}),
        ),
        (
            "extra_hosts: [\"a:10.0.0.1\", \"b=[::1]\"]",
            "extra_hosts",
            json!(["a:10.0.0.1", "b:::1"]),
        ),
        ("extra_hosts: {a: host-gateway}", "extra_hosts", json!(["a:host-gateway"])),
        ("tmpfs: /run", "tmpfs", json!({"/run": ""})),
        ("tmpfs: [\"/tmp:size=1m\"]", "tmpfs", json!({"/tmp": "size=1m"})),
        ("labels: [a=b, c]", "labels", json!({"a": "b", "c": ""})),
        ("platform: linux/arm64", "platform", json!("linux/arm64")),
        ("pull_policy: always", "pull", json!("always")),
        ("stop_signal: SIGINT", "stop_signal", json!("SIGINT")),
        ("network_mode: host", "network", json!("host")),
        (
            "volumes: [\"/srv/x:/x:ro\"]",
            "mounts",
            json!([{"source": "/srv/x", "target": "/x", "read_only": true}]),
        ),
        (
            "volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1m}}]",
            "tmpfs",
            json!({"/t": "size=1048576"}),
        ),
        ("networks: {other: {aliases: [y, x]}}", "networks", json!({"lan": ["web", "x", "y"]})),
    ] {
        assert_eq!(container(keys)[key], value, "{keys}");
    }
    let host = web("network_mode: host").unwrap();
    assert_eq!((docker(&host).network, docker(&host).networks.len()), (NetworkMode::Host, 0));
    let spec = web("stop_grace_period: 1m\nworking_dir: /w\nprivileged: false").unwrap();
    assert_eq!((spec.run.stop_grace_ms, spec.run.workdir.as_deref()), (60_000, Some("/w")));
}

#[test]
fn ports_are_published_on_all_nodes_or_not_at_all() {
    for (ports, expected) in [
        ("\"80\"", json!({"tcp80": {"container": 80}})),
        ("\"8080:80\"", json!({"tcp80": {"container": 80, "publish": 8080}})),
        ("\"0.0.0.0:8080:80/tcp\"", json!({"tcp80": {"container": 80, "publish": 8080}})),
        ("\"[::]:8080:80\"", json!({"tcp80": {"container": 80, "publish": 8080}})),
        (
            "\"8000-8001:80-81\"",
            json!({"tcp80": {"container": 80, "publish": 8000},
                                       "tcp81": {"container": 81, "publish": 8001}}),
        ),
        (
            "\"81:80\", \"82:80\"",
            json!({"tcp80": {"container": 80, "publish": 81},
                                        "tcp80-82": {"container": 80, "publish": 82}}),
        ),
        (
            "{target: 80, published: \"81\", name: Main, mode: host}",
            json!({"Main": {"container": 80, "publish": 81}}),
        ),
        ("80", json!({"tcp80": {"container": 80}})),
    ] {
        let spec = web(&format!("ports: [{ports}]")).unwrap();
        assert_eq!(serde_json::to_value(&spec.ports).unwrap(), expected, "{ports}");
    }
    for (ports, says) in [
        ("\"53:53/udp\"", "only TCP"),
        ("\"127.0.0.1:80:80\"", "publishes a port on the LAN"),
        ("\"[::1]:80:80\"", "publishes a port on the LAN"),
        ("\"10.0.0.1:80:80\"", "not at one address"),
        ("\"8000-8002:80\"", "different lengths"),
        ("\"0:80\"", "not a port"),
        ("\"80:99999\"", "not a port"),
        ("\"x:80\"", "not a port"),
        ("\"81:80\", \"81:82\"", "both publish 81"),
    ] {
        web_refused(&format!("ports: [{ports}]"), &["line 4 (services.web.ports", says]);
    }
    web_refused(&format!("ports: [\"{}-{}:{0}-{1}\"]", 1000, 2000), &["PORTS_MAX"]);
}

#[test]
fn health_checks_have_the_defaults_of_docker() {
    let health = |keys: &str| web(&format!("healthcheck: {keys}")).unwrap().health;
    let command =
        |words: &[&str]| HealthCheck::Command(words.iter().map(|w| (*w).into()).collect());
    let check = |keys: &str| health(keys).unwrap().check.clone();
    assert_eq!(check("{test: curl x}"), command(&["/bin/sh", "-c", "curl x"]));
    assert_eq!(check("{test: [CMD-SHELL, \"a || b\"]}"), command(&["/bin/sh", "-c", "a || b"]));
    assert_eq!(check("{test: [NONE]}"), HealthCheck::None);
    assert_eq!(check("{disable: true}"), HealthCheck::None);
    assert_eq!(health("{interval: 5s}"), None);
    let spec = health("{test: x, timeout: 2s, start_period: 0s, start_interval: 1s}").unwrap();
    let times = (spec.interval_ms, spec.timeout_ms, spec.start_period_ms, spec.failures);
    assert_eq!(times, (30_000, 2_000, 0, 3));
    web_refused("healthcheck: {test: [x]}", &["line 4 (services.web.healthcheck.test)", "CMD"]);
    web_refused("healthcheck: {test: x, interval: soon}", &["(services.web.healthcheck.interval)"]);
}

#[test]
fn deploy_decides_where_replicas_run_and_how_they_are_updated() {
    let spec = web(
        "restart: always\ndeploy:\n  replicas: 4\n  resources:\n    limits: {cpus: '0.25', memory: 50M, pids: 9}\n\
         \x20 restart_policy: {condition: on-failure, delay: 5s}\n\
         \x20 update_config: {parallelism: 2, order: stop-first, failure_action: pause}\n\
         \x20 placement:\n    constraints: [node.labels.disk == fast]\n    preferences: [{spread: node.labels.zone}]",
    )
    .unwrap();
    let json = serde_json::to_value(&spec).unwrap();
    assert_eq!(json["replicas"], 4);
    assert_eq!(json["resources"], json!({"cpu_millis": 250, "memory_bytes": 50 << 20}));
    assert_eq!(
        json["restart"],
        json!({"when": "on_failure", "backoff_ms": 5000, "backoff_ms_max": 60000})
    );
    assert_eq!(
        json["update"],
        json!({"max_surge": 0, "min_healthy": 2, "healthy_within_ms": 300_000, "rollback": false})
    );
    assert_eq!((&json["require"], &json["spread"]), (&json!({"disk": "fast"}), &json!("zone")));
    assert_eq!(docker(&spec).pids, Some(9));
    for (keys, says) in [
        ("deploy: {mode: global}", "(services.web.deploy.mode)"),
        ("deploy: {placement: {constraints: [node.role == manager]}}", "node.labels.disk"),
        ("deploy: {resources: {reservations: {devices: []}}}", "devices"),
        ("deploy: {replicas: 100000}", "REPLICAS_MAX"),
        ("restart: sometimes", "unless-stopped"),
    ] {
        web_refused(keys, &["compose.yaml, line 4", says]);
    }
}

#[test]
fn local_files_become_a_part_of_the_spec() {
    let folder = folder(&[
        (
            "compose.yaml",
            "
services:
  web:
    image: nginx
    volumes: [\"./nginx.conf:/etc/nginx/nginx.conf:ro\", \"./conf:/conf\"]
    configs: [app, {source: app, target: /etc/app.toml, mode: 0440}]
    secrets: [password, {source: token, target: api}]
    env_file: [a.env, {path: missing.env, required: false}]
    environment: [SET, NOT_SET, A=override]
configs:
  app: {content: \"x = $SET\"}
secrets:
  password: {file: ./password.txt}
  token: {environment: TOKEN}
",
        ),
        (".env", "TOKEN=t0ken\n"),
        ("nginx.conf", "events {}\n"),
        ("conf/a", "1"),
        ("conf/below/b", "2"),
        ("password.txt", "secret"),
        ("a.env", "A=file\nB=\"quoted $TOKEN\"\n"),
    ]);
    let project = shop(folder.path()).unwrap();
    let spec = &project.members[0].spec;
    assert_eq!(
        serde_json::to_value(&spec.run.files).unwrap(),
        json!({
            "/app": "x = here",
            "/conf/a": "1",
            "/conf/below/b": "2",
            "/etc/app.toml": "x = here",
            "/etc/nginx/nginx.conf": "events {}\n",
            "/run/secrets/api": "t0ken",
            "/run/secrets/password": "secret",
        })
    );
    let env = json!({"A": "override", "B": "quoted t0ken", "SET": "here"});
    assert_eq!(serde_json::to_value(&spec.run.env).unwrap(), env);
    let notes = project.notes.join("\n");
    assert!(notes.contains("volumes[1]): the container gets a copy"), "{notes}");
    assert!(notes.contains("mode): every user in the container can read"), "{notes}");

    for (volume, says) in [
        ("./data:/d", "does not exist on this machine"),
        ("./empty:/d", "is empty"),
        ("./many:/d", "FILES_MAX"),
        ("./large:/d", "FILES_BYTES_MAX"),
        ("./binary:/d", "not text in UTF-8"),
        ("~/x:/d", "/home/anna/x does not exist"),
        ("~bob/x:/d", "not a path that podmesh knows"),
        ("nothing:/d", "not in the top-level `volumes`"),
        ("./a:/b:exec", "option `exec`"),
        ("a:b:c:d", "SOURCE:TARGET"),
        ("./a.env:relative", "absolute"),
    ] {
        let path = folder.path();
        fs::create_dir_all(path.join("empty")).unwrap();
        fs::create_dir_all(path.join("many")).unwrap();
        (0..65).for_each(|n| fs::write(path.join(format!("many/{n}")), "").unwrap());
        fs::write(path.join("large"), vec![b'x'; 300 << 10]).unwrap();
        fs::write(path.join("binary"), [0xff]).unwrap();
        let text = format!("services:\n  web:\n    image: x\n    volumes: ['{volume}']\n");
        fs::write(path.join("compose.yaml"), text).unwrap();
        let said = shop(path).unwrap_err().to_string();
        assert!(said.contains("compose.yaml, line 4 (services.web.volumes"), "{said}");
        assert!(said.contains(says), "{volume}: {said}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_file_line_and_key() {
    for (keys, says) in [
        ("build: .", "build and push the image"),
        ("privileged: true", "cap_add"),
        ("pid: host", "podmesh does not support this key; remove it"),
        ("unknown: 1", "podmesh does not support this key; remove it"),
        ("enviroment: {}", "did you mean `environment`?"),
        ("sysctls: {a: 1}", "(services.web.sysctls)"),
        ("dns: 1.1.1.1", "(services.web.dns)"),
        ("logging: {driver: syslog}", "files on the node"),
        ("network_mode: service:db", "bridge, host and none"),
        ("networks: [nowhere]", "top-level `networks`"),
        ("networks: {default: {ipv4_address: 10.0.0.1}}", "the node chooses addresses"),
        ("links: [\"web:alias\"]", "aliases: [alias]"),
        ("secrets: [nothing]", "`nothing` is not in the top level"),
        ("ulimits: {files: 3}", "nofile"),
        ("user: [1]", "expected a text, and this is a list"),
        ("init: maybe", "expected true or false, and this is `maybe`"),
        ("shm_size: large", "not a size"),
        ("pull_policy: daily", "always, missing and never"),
        ("stop_signal: SIGFOO", "not a signal"),
        ("command: \"a 'b\"", "a quote has no end"),
        ("environment: {A: [1]}", "expected a text"),
        ("cap_add: NET_RAW", "expected a list"),
        ("env_file: no.env", "no.env does not exist"),
        ("depends_on: {web: {condition: started}}", "service_completed_successfully"),
        ("profiles: x", "expected a list"),
    ] {
        web_refused(keys, &["compose.yaml, line 4 (services.web.", says]);
    }
    for (text, says) in [
        ("services:\n  web: {}\n", &["line 2 (services.web)", "has no `image`"][..]),
        ("services: [web]\n", &["line 1 (services)", "expected a map"]),
        ("services:\n  web: nginx\n", &["line 2 (services.web)", "a service is a map"]),
        ("", &["line 1", "the file has no services"]),
        ("- a\n", &["a compose file is a map, and this is a list"]),
        ("servces: {}\n", &["(servces)", "did you mean `services`?"]),
        (
            "services:\n  web: {image: x}\nsecrets:\n  a: {file: ./none}\n",
            &["line 4 (secrets.a.file)", "none cannot be read: No such file"],
        ),
        (
            "services:\n  web: {image: x}\nsecrets:\n  a: {external: true}\n",
            &["line 4 (secrets.a.external)"],
        ),
        (
            "services:\n  web: {image: x}\nvolumes:\n  a: {driver_opts: {type: nfs}}\n",
            &["line 4 (volumes.a.driver_opts)"],
        ),
        (
            "services:\n  web: {image: x}\nnetworks:\n  a: {internal: true}\n",
            &["line 4 (networks.a.internal)"],
        ),
        (
            "services:\n  Web: {image: x}\n  web: {image: x}\n",
            &["line 3 (services.web)", "only in case from `Web` in line 2"],
        ),
        ("services:\n  we b: {image: x}\n", &["line 2 (services.we b)", "not allowed"]),
        ("services:\n  web: {image: x, depends_on: [db]}\n", &["no service `db`"]),
        (
            "services:\n  web: {image: x, depends_on: [db]}\n  db: {image: x, profiles: [p]}\n",
            &["--profile"],
        ),
        (
            "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [c]}\n  c: {image: x, depends_on: [b]}\n",
            &["line 3 (services.b.depends_on.c)", "need each other: b → c → b"],
        ),
        ("services:\n  a: {image: x, depends_on: [a]}\n", &["a → a"]),
        (
            "services:\n  a: {image: x, depends_on: {b: {condition: service_completed_successfully}}}\n  b: {image: x, restart: always}\n",
            &["line 2", "never completes"],
        ),
        (
            "services:\n  a: {image: \"${TAG:?set TAG}\"}\n",
            &["line 2 (services.a.image)", "TAG is not set: set TAG"],
        ),
    ] {
        refused(text, says);
    }
    let large = folder(&[("compose.yaml", "")]);
    fs::File::create(large.path().join("compose.yaml")).unwrap().set_len(100 << 20).unwrap();
    assert!(shop(large.path()).unwrap_err().to_string().contains("JOB_FILE_BYTES_MAX"));
}

#[test]
fn what_has_no_effect_is_listed() {
    let text = "version: '3'\nservices:\n  web:\n    image: x\n    expose: [80]\n    stdin_open: true\n\
                \x20   logging: {driver: json-file, options: {max-size: 10m}}\n    restart: on-failure:3\n\
                \x20   labels: {a: $UNSET}\n    x-mine: {$bad: $}\n";
    let notes = project(text).unwrap().notes;
    let expected = [
        "line 1 (version)",
        "line 5 (services.web.expose)",
        "line 6 (services.web.stdin_open)",
        "line 7 (services.web.logging)",
        "line 8 (services.web.restart)",
        "variable UNSET is not set",
    ];
    for part in expected {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:?}");
    }
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
}

#[test]
fn a_project_can_be_spread_over_nodes() {
    let text = "x-podmesh: {spread: true}\nservices:\n  web: {image: x, networks: [default]}\n";
    let spec = project(text).unwrap().members.remove(0).spec;
    assert!(!spec.project.as_ref().unwrap().together);
    assert_eq!(docker(&spec).networks.len(), 0);
    refused(&format!("{text}networks:\n  back:\n"), &["line 5 (networks.back)", "different nodes"]);
    refused("x-podmesh: {sprad: true}\nservices: {a: {image: x}}\n", &["did you mean `spread`?"]);
}

#[test]
fn profiles_choose_services() {
    let folder = folder(&[(
        "compose.yaml",
        "services:\n  a: {image: x}\n  b: {image: x, profiles: [p, q]}\n",
    )]);
    let names = |profiles: &[&str]| -> Vec<String> {
        let profiles = profiles.iter().map(|name| (*name).to_owned()).collect();
        let options = Options { project: Some("s".into()), profiles, ..Options::default() };
        let project = read(&options, folder.path(), &here).unwrap();
        project.members.into_iter().map(|member| member.name).collect()
    };
    assert_eq!(names(&[]), ["a"]);
    assert_eq!(names(&["q"]), ["a", "b"]);
    assert_eq!(names(&["*"]), ["a", "b"]);
}

#[test]
fn external_volumes_are_not_a_part_of_the_project() {
    let text = "services:\n  a: {image: x, volumes: ['one:/1', 'two:/2', 'three:/3']}\n\
                volumes:\n  one: {external: true}\n  two: {external: true, name: shared}\n  three: {name: mine}\n";
    let project = project(text).unwrap();
    let names: Vec<String> =
        project.members[0].spec.volumes().iter().map(|v| v.volume.to_string()).collect();
    assert_eq!(names, ["one", "shared", "mine"]);
    assert_eq!(project.volumes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["mine"]);
}

#[test]
fn files_include_extend_and_override_each_other() {
    let folder = folder(&[
        (
            "compose.yaml",
            "
include: [sub/more.yaml]
services:
  web:
    extends: {file: base.yaml, service: base}
    environment: {B: web}
  api:
    extends: web
    image: api
",
        ),
        ("compose.override.yaml", "services:\n  web: {ports: ['81:80'], image: \"web:${SET}\"}\n"),
        (
            "base.yaml",
            "services:\n  base: {image: base, environment: [A=base, B=base], init: true}\n",
        ),
        (
            "sub/more.yaml",
            "services:\n  db: {image: db, volumes: ['./f:/f:ro']}\nvolumes: {data: }\n",
        ),
        ("sub/f", "in sub"),
    ]);
    let project = shop(folder.path()).unwrap();
    let spec =
        |name: &str| &project.members.iter().find(|member| member.name == name).unwrap().spec;
    let env = |name: &str| serde_json::to_value(&spec(name).run.env).unwrap();
    assert_eq!(env("web"), json!({"A": "base", "B": "web"}));
    assert_eq!(env("api"), env("web"));
    assert_eq!(docker(spec("web")).image, "web:here");
    assert_eq!(docker(spec("api")).image, "api");
    assert!(
        docker(spec("api")).init && spec("web").ports.len() == 1 && spec("api").ports.is_empty()
    );
    assert_eq!(spec("db").run.files["/f"], "in sub");

    let yaml = project.yaml().unwrap();
    assert!(yaml.contains("image: web:here") && !yaml.contains("extends"), "{yaml}");
}

#[test]
fn circles_of_files_are_refused() {
    let said = |files: &[(&str, &str)]| shop(folder(files).path()).unwrap_err().to_string();
    let text = said(&[("compose.yaml", "include: [a.yaml]\n"), ("a.yaml", "include: [a.yaml]\n")]);
    assert!(text.contains("includes itself"), "{text}");
    let text = said(&[("compose.yaml", "services: {a: {extends: b}, b: {extends: a}}\n")]);
    assert!(text.contains("extends itself"), "{text}");
    let text = said(&[
        ("compose.yaml", "include: [a.yaml]\nservices: {db: {image: x}}\n"),
        ("a.yaml", "services: {db: {image: y}}\n"),
    ]);
    assert!(text.contains("a.yaml, line 1 (services.db)") && text.contains("different"), "{text}");
}

#[test]
fn the_printed_file_means_the_same() {
    let first = project(STACK).unwrap();
    let second = project(&first.yaml().unwrap().replace("$ecret", "$$ecret")).unwrap();
    let specs = |project: &Project| -> Vec<ServiceSpec> {
        project.members.iter().map(|member| member.spec.clone()).collect()
    };
    assert_eq!(specs(&first), specs(&second));
}

#[test]
fn a_project_is_named_by_its_folder_its_file_or_the_user() {
    let parent =
        folder(&[("My.Shop_1/compose.yaml", "services: {a: {image: x}}\n"), ("none/x", "")]);
    let name = |folder: &str, options: Options| {
        read(&options, &parent.path().join(folder), &here).map(|project| project.name.to_string())
    };
    assert_eq!(name("My.Shop_1", Options::default()).unwrap(), "myshop_1");
    // Also from a folder below.
    fs::create_dir(parent.path().join("My.Shop_1/below")).unwrap();
    assert_eq!(name("My.Shop_1/below", Options::default()).unwrap(), "myshop_1");
    let given = |project: &str| Options { project: Some(project.into()), ..Options::default() };
    for bad in ["", "A", "a b", "-a", "a.b"] {
        assert!(name("My.Shop_1", given(bad)).unwrap_err().to_string().contains("lower-case"));
    }
    assert_eq!(project("name: x$SET\nservices: {a: {image: x}}").unwrap().name.as_str(), "shop");
    let named = folder(&[(
        "compose.yaml",
        "name: x$SET\nservices: {a: {image: '$COMPOSE_PROJECT_NAME'}}\n",
    )]);
    let project = read(&Options::default(), named.path(), &here).unwrap();
    assert_eq!(project.name.as_str(), "xhere");
    assert_eq!(docker(&project.members[0].spec).image, "xhere");
    let said = name("none", Options::default()).unwrap_err();
    assert!(said.to_string().contains("no compose file"), "{said}");
}
