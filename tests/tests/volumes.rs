//! Named volumes: services and jobs go to the node that has them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use podmesh_tests::docker::{self, TestVolume};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn mesh() -> Mesh {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    for name in ["a", "b", "c"] {
        mesh.start_agent(name, &["--docker", "on"]);
    }
    mesh
}

/// Applies a service that adds a line with its revision to a file on the volume, and goes on.
fn apply(mesh: &Mesh, image: &str, volume: &str, word: &str) {
    let script =
        format!("echo {word} >> /data/log; trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let file = format!(
        "name = \"db\"\nimage = \"{image}\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\n\
         volumes = [\"{volume}:/data\"]\ncpus = 0.1\n"
    );
    let path = mesh.folder().join("db.toml");
    fs::write(&path, file).unwrap();
    mesh.ok(&["service", "apply", "-f", path.to_str().unwrap(), "--wait", "--timeout", "50s"]);
}

fn node_of_db(mesh: &Mesh) -> String {
    let shown = mesh.json(&["service", "db"]);
    let replicas = shown["replica_list"].as_array().unwrap();
    assert_eq!(replicas.len(), 1, "{shown}");
    replicas[0]["node"].as_str().unwrap().to_owned()
}

fn volumes(mesh: &Mesh) -> Vec<Value> {
    mesh.json(&["volumes"])["volumes"].as_array().unwrap().clone()
}

#[test]
fn a_service_and_jobs_stay_with_their_data_until_it_is_removed() {
    let Some(image) = docker::image() else { return };
    let volume = TestVolume::new("data");
    let mut mesh = mesh();
    apply(&mesh, image, &volume.name, "one");
    let home = node_of_db(&mesh);
    apply(&mesh, image, &volume.name, "two");
    mesh.kill_manager();
    mesh.start_manager();
    apply(&mesh, image, &volume.name, "three");
    assert_eq!(node_of_db(&mesh), home);
    let [found] = volumes(&mesh).try_into().unwrap();
    assert_eq!(
        (&found["volume"], &found["node"]),
        (&volume.name.clone().into(), &home.clone().into())
    );
    assert_eq!(found["services"][0], "db");
    let mounted = format!("{}:/data:ro", volume.name);
    let print = ["run", "--image", image, "--volume", &mounted, "--", "cat", "/data/log"];
    assert_eq!(mesh.ok(&print), "one\ntwo\nthree\n");

    let refused = mesh.output(&["volume", "remove", &volume.name]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("used by service `db`"), "{said}");
    mesh.ok(&["service", "remove", "db", "--wait"]);
    // Its agent is away. What was asked for is done when it is back.
    mesh.kill_agent(&home);
    let late = mesh.podmesh(&["volume", "remove", &volume.name]).spawn().unwrap();
    until_true("it is asked for", || volumes(&mesh)[0]["removing"] == true);
    assert!(volume.exists());
    mesh.start_agent(&home, &["--docker", "on"]);
    assert!(late.wait_with_output().unwrap().status.success());
    assert_eq!(volumes(&mesh), Vec::<Value>::new());
    assert!(!volume.exists());
}
