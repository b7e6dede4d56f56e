//! A compose file over its life: brought up, changed, brought up again, removed. Real containers.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use podmesh_tests::docker::{self, TestVolume};
use podmesh_tests::http::get;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{until, until_true};
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// The published port. Each test's proxies have addresses of their own.
const PORT: u16 = 8080;

/// An application as in the usual examples: a database with a volume, a cache, a job that prepares
/// the database, and a web server that needs them all.
const COMPOSE: &str = r#"
x-common: &common
  image: ${IMAGE:?the image of the test}
  init: true
services:
  db:
    <<: *common
    environment:
      GREETING: ${GREETING:-hello}
    command: >-
      sh -c 'mkdir -p /data /www; echo "$$GREETING" >> /data/log;
      cp /data/log /www/index.html; exec httpd -f -p 5432 -h /www'
    volumes:
      - data:/data
    healthcheck:
      test: ["CMD", "wget", "-qO-", "http://127.0.0.1:5432/"]
      interval: 1s
      timeout: 2s
      retries: 5
    expose: ["5432"]
    restart: unless-stopped
  cache:
    <<: *common
    command: ["sh", "-c", "mkdir /www; echo cached > /www/index.html; exec httpd -f -p 6379 -h /www"]
    healthcheck:
      test: wget -qO- http://127.0.0.1:6379/ || exit 1
      interval: 1s
    restart: always
  migrate:
    <<: *common
    command: ["sh", "-c", "wget -qO- http://db:5432/ && echo migrated"]
    depends_on:
      db:
        condition: service_healthy
  web:
    <<: *common
    command:
      - sh
      - -c
      - |
        mkdir /www
        (wget -qO- http://db:5432/; wget -qO- http://cache:6379/; cat /etc/app.conf /run/secrets/key; echo "$$WORD") > /www/index.html
        exec httpd -f -p 80 -h /www
    environment:
      - WORD=one
    ports:
      - "8080:80"
    configs:
      - source: app
        target: /etc/app.conf
    secrets: [key]
    depends_on:
      db: { condition: service_healthy }
      cache: { condition: service_started }
      migrate: { condition: service_completed_successfully }
    restart: unless-stopped
    logging:
      driver: json-file
      options: { max-size: 10m }
configs:
  app: { file: ./app.conf }
secrets:
  key: { file: ./key.txt }
volumes:
  data:
    name: ${VOLUME:?the volume of the test}
"#;

struct Project<'a> {
    mesh: &'a Mesh,
    image: &'a str,
    volume: &'a TestVolume,
}

impl<'a> Project<'a> {
    fn new(mesh: &'a Mesh, image: &'a str, volume: &'a TestVolume) -> Self {
        let this = Self { mesh, image, volume };
        fs::create_dir(this.folder()).unwrap();
        for (name, text) in
            [("compose.yaml", COMPOSE), ("app.conf", "configured\n"), ("key.txt", "secret\n")]
        {
            fs::write(this.folder().join(name), text).unwrap();
        }
        this.variables("hello");
        this
    }

    fn folder(&self) -> std::path::PathBuf {
        self.mesh.folder().join("shop")
    }

    fn variables(&self, greeting: &str) {
        let text =
            format!("IMAGE={}\nVOLUME={}\nGREETING={greeting}\n", self.image, self.volume.name);
        fs::write(self.folder().join(".env"), text).unwrap();
    }

    fn change(&self, from: &str, to: &str) {
        let path = self.folder().join("compose.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn compose(&self, args: &[&str]) -> Output {
        let args = [&["compose"], args].concat();
        self.mesh.podmesh(&args).current_dir(self.folder()).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.compose(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "compose {args:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap() + &said
    }

    fn ps(&self) -> Vec<Value> {
        let args = ["--output", "json", "compose", "ps"];
        let output = self.mesh.podmesh(&args).current_dir(self.folder()).output().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["services"].as_array().unwrap().clone()
    }

    fn revision(&self, service: &str) -> u64 {
        let all = self.ps();
        let found = all.iter().find(|row| row["project"]["member"] == service).unwrap();
        found["revision"].as_u64().unwrap()
    }
}

/// Returns the networks of the agent of a node.
fn networks(mesh: &Mesh, node: &str) -> String {
    let agent = fs::read_to_string(mesh.agent_dir(node).join("agent/id")).unwrap();
    let filter = format!("label=podmesh.agent={}", agent.trim());
    let listed = Command::new("docker").args(["network", "ls", "-q", "--filter", &filter]).output();
    String::from_utf8(listed.unwrap().stdout).unwrap()
}

#[test]
fn an_application_comes_up_in_order_is_changed_and_goes_again() {
    let Some(image) = docker::image() else { return };
    let volume = TestVolume::new("compose");
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    for node in ["a", "b"] {
        mesh.start_agent(node, &["--docker", "on"]);
    }
    let at = SocketAddr::new(mesh.ingress("b").into(), PORT);
    let project = Project::new(&mesh, image, &volume);
    let planned = project.ok(&["up", "--dry-run"]);
    assert!(planned.contains("shop-web") && planned.contains("expose"), "{planned}");
    assert_eq!(project.ps(), Vec::<Value>::new(), "nothing was changed");

    project.ok(&["up", "-d", "--wait", "--timeout", "90s"]);
    let page = until("the proxy answers", || get(at).ok());
    assert_eq!(page, "hello\ncached\nconfigured\nsecret\none\n");
    let all = project.ps();
    assert_eq!(all.len(), 4);
    let rows = || all.iter().flat_map(|row| row["replica_list"].as_array().unwrap());
    let nodes: Vec<&Value> =
        rows().map(|row| &row["node"]).filter(|node| !node.is_null()).collect();
    assert!(nodes.len() >= 3 && nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
    let home = nodes[0].as_str().unwrap();
    let printed = project.ok(&["logs", "migrate"]);
    assert!(printed.contains("hello") && printed.contains("migrated"), "{printed}");

    // The same again changes nothing. One word changes one service.
    project.ok(&["up", "--wait", "--timeout", "90s"]);
    assert_eq!(["db", "cache", "migrate", "web"].map(|one| project.revision(one)), [1; 4]);
    project.change("WORD=one", "WORD=two");
    project.ok(&["up", "--wait", "--timeout", "90s"]);
    assert_eq!(["db", "cache", "migrate", "web"].map(|one| project.revision(one)), [1, 1, 1, 2]);
    until_true("the new one answers", || get(at).is_ok_and(|page| page.ends_with("two\n")));

    // The database restarts with its data.
    project.variables("again");
    project.ok(&["up", "--wait", "--timeout", "90s"]);
    assert_eq!(project.revision("db"), 2);
    let mounted = format!("{}:/data:ro", volume.name);
    let print =
        ["run", "--cpus", "0.1", "--image", image, "--volume", &mounted, "--", "cat", "/data/log"];
    assert_eq!(mesh.ok(&print), "hello\nagain\n");

    assert!(!networks(&mesh, home).is_empty());
    project.ok(&["down", "--timeout", "60s"]);
    assert_eq!(project.ps(), Vec::<Value>::new());
    assert!(volume.exists(), "data stays");
    until_true("the network goes with its last container", || networks(&mesh, home).is_empty());
    project.ok(&["up", "--wait", "--timeout", "90s"]);
    project.ok(&["down", "--volumes", "--timeout", "60s"]);
    assert!(!volume.exists());
}
