//! Compose files with a real Docker engine.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;

use podmesh_tests::docker;
use podmesh_tests::http::get;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// The published port. The proxy of each test has an address of its own.
const PORT: u16 = 8080;

/// A mesh of one node, and a folder with a compose file.
struct Shop {
    mesh: Mesh,
    folder: PathBuf,
}

impl Shop {
    fn new(file: &str) -> Self {
        let mut mesh = Mesh::new(PODMESH);
        mesh.start_manager();
        mesh.start_agent("a", &["--docker", "on"]);
        let folder = mesh.folder().join("shop");
        fs::create_dir(&folder).unwrap();
        let shop = Self { mesh, folder };
        shop.write(file);
        shop
    }

    fn write(&self, file: &str) {
        fs::write(self.folder.join("compose.yaml"), file).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let file = self.folder.join("compose.yaml");
        self.mesh.output(&[&["compose", "-f", file.to_str().unwrap()], args].concat())
    }

    /// Runs a verb that succeeds. Returns what it prints, and its messages.
    fn ok(&self, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{args:?}: {texts:?}");
        let [out, said] = texts;
        (out, said)
    }

    fn services(&self) -> Vec<Value> {
        let shown: Value = serde_json::from_str(&self.ok(&["ps", "-o", "json"]).0).unwrap();
        shown["services"].as_array().unwrap().clone()
    }

    fn volumes(&self) -> Vec<String> {
        let shown = self.mesh.json(&["volumes"]);
        let names = shown["volumes"].as_array().unwrap().iter();
        names.map(|view| view["volume"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // The engine keeps volumes when the mesh is gone.
        _ = self.run(&["down", "--volumes", "--timeout", "30s"]);
    }
}

/// A web application with parts that resemble a database, a cache and a migration. Each serves its
/// name, and the web server shows what the others say.
fn stack(image: &str) -> String {
    format!(
        r#"
x-part: &part
  image: {image}
  restart: unless-stopped
  cpus: 0.1
  init: true
  stop_grace_period: 1s
services:
  web:
    <<: *part
    container_name: front
    depends_on:
      db: {{condition: service_healthy}}
      cache: {{condition: service_started}}
      migrate: {{condition: service_completed_successfully}}
    environment:
      DB_HOST: db
    command:
      - sh
      - -c
      - |
        mkdir /tmp/www
        (wget -q -O - http://$$DB_HOST:5432/; wget -q -O - http://cache-alias:6379/; cat /run/secrets/key) > /tmp/www/index.html
        exec httpd -f -p 80 -h /tmp/www
    networks: [default, back]
    ports: ["{PORT}:80"]
    secrets: [key]
  db:
    <<: *part
    command: sh -c "mkdir -p /tmp/www && cp /data/state /tmp/www/index.html; cp /data/state /tmp/www/ready; exec httpd -f -p 5432 -h /tmp/www"
    entrypoint: [sh, -c, 'test -e /data/state || echo "from the volume" > /data/state; exec "$$@"', --]
    volumes: ["data:/data"]
    healthcheck:
      test: [CMD-SHELL, "wget -q -O /dev/null http://127.0.0.1:5432/ready"]
      interval: 1s
      retries: 20
  cache:
    <<: *part
    command: sh -c "mkdir /tmp/www && echo from-the-cache > /tmp/www/index.html && exec httpd -f -p 6379 -h /tmp/www"
    networks: {{back: {{aliases: [cache-alias]}}}}
  migrate:
    <<: *part
    restart: "no"
    depends_on: {{db: {{condition: service_healthy}}}}
    command: sh -c "wget -q -O - http://db:5432/ && echo migrated"
volumes:
  data:
networks:
  back:
secrets:
  key: {{file: ./key.txt}}
"#
    )
}

#[test]
fn a_stack_starts_in_order_finds_its_parts_and_is_removed() {
    let Some(image) = docker::image() else { return };
    let mut shop = Shop::new(&stack(image));
    fs::write(shop.folder.join("key.txt"), "from the secret").unwrap();

    let (plan, notes) = shop.ok(&["up", "--dry-run"]);
    assert!(plan.contains("shop-web is new") && notes.contains("container_name"), "{plan}{notes}");
    assert!(shop.services().is_empty());

    let (_, said) = shop.ok(&["up", "-d", "--wait", "--timeout", "50s"]);
    let services = shop.services();
    let names: Vec<&str> = services.iter().map(|row| row["service"].as_str().unwrap()).collect();
    assert_eq!(names, ["shop-cache", "shop-db", "shop-migrate", "shop-web"], "{said}");
    assert!(services.iter().all(|row| row["state"] == "healthy"), "{services:?}");
    assert_eq!(services[2]["replica_list"][0]["state"], "ended", "{services:?}");

    let address = SocketAddr::new(shop.mesh.ingress("a").into(), PORT);
    let page = until("the web server answers", || get(address).ok());
    for part in ["from the volume", "from-the-cache", "from the secret"] {
        assert!(page.contains(part), "{page}");
    }
    let (logs, _) = shop.ok(&["logs", "migrate"]);
    assert!(logs.contains("migrate.1 | migrated"), "{logs}");

    // The same file again changes nothing.
    let (again, _) = shop.ok(&["up", "--wait", "--timeout", "50s"]);
    assert_eq!(again.matches("nothing to change").count(), 4, "{again}");

    // A service that is no longer in the file stays until somebody says otherwise.
    let file = stack(image).replace("cache-alias", "db").replace(":6379/;", ":5432/;");
    let (before, rest) = file.split_once("  cache:\n").unwrap();
    let (_, after) = rest.split_once("  migrate:\n").unwrap();
    let dependency = "      cache: {condition: service_started}\n";
    shop.write(&format!("{}  migrate:\n{after}", before.replace(dependency, "")));
    let (_, said) = shop.ok(&["up", "--wait", "--timeout", "50s"]);
    assert!(said.contains("shop-cache; --remove-orphans"), "{said}");
    shop.ok(&["up", "--remove-orphans", "--wait", "--timeout", "50s"]);
    until("the orphan is removed", || (shop.services().len() == 3).then_some(()));

    let (gone, _) = shop.ok(&["down", "--timeout", "50s"]);
    assert!(gone.find("shop-web: removed") < gone.find("shop-db: removed"), "{gone}");
    assert_eq!(shop.volumes(), ["shop_data"]);
    shop.ok(&["down", "--volumes"]);
    assert!(shop.volumes().is_empty());
}

#[test]
fn a_migration_that_fails_is_told_and_what_needs_it_does_not_start() {
    let Some(image) = docker::image() else { return };
    let file = format!(
        "services:
  migrate: {{image: '{image}', cpus: 0.1, command: sh -c 'exit 3'}}
  web:
    image: '{image}'
    cpus: 0.1
    command: sleep 1000
    depends_on: {{migrate: {{condition: service_completed_successfully}}}}
"
    );
    let shop = Shop::new(&file);
    let output = shop.run(&["up", "--wait", "--timeout", "50s"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("shop-migrate") && said.contains('3'), "{said}");
    let web = &shop.services()[1];
    assert_eq!(web["replica_list"][0]["state"], "waiting", "{web}");
    assert_eq!(web["replica_list"][0]["node"], Value::Null, "{web}");
}

#[test]
fn nothing_is_applied_if_one_service_is_refused_or_has_the_name_of_another() {
    let Some(image) = docker::image() else { return };
    let shop = Shop::new("services:\n  a: {image: x, cpus: 0.1}\n  b: {build: .}\n");
    let output = shop.run(&["up"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("compose.yaml, line 3 (services.b.build)"), "{said}");
    assert!(shop.services().is_empty());

    let other = shop.folder.join("other.toml");
    let text = format!(
        "name = \"shop-a\"\nimage = \"{image}\"\ncommand = [\"sleep\", \"9\"]\ncpus = 0.1\n"
    );
    fs::write(&other, text).unwrap();
    shop.mesh.ok(&["service", "apply", "-f", other.to_str().unwrap()]);
    shop.write(&format!("services:\n  a: {{image: '{image}', cpus: 0.1}}\n"));
    let said = String::from_utf8(shop.run(&["up"]).stderr).unwrap();
    assert!(said.contains("another service shop-a: it belongs to no project"), "{said}");
    shop.mesh.ok(&["service", "remove", "shop-a", "--wait", "--timeout", "40s"]);
}
