//! A client that a stock generator makes from the document.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{local, mesh, remote, token};

/// The folder with the generator and its Python: a virtual environment in which
/// `pip install openapi-python-client` was run.
const GENERATOR: &str = "PODMESH_TEST_OPENAPI";

#[test]
fn a_generated_client_submits_a_job() {
    let Some(bin) = std::env::var_os(GENERATOR).map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: a generated client: {GENERATOR} does not name a folder with openapi-python-client"
        );
        return;
    };
    let mesh = mesh(&["a"]);
    let document = mesh.folder().join("openapi.json");
    std::fs::write(&document, local(&mesh).get("/api/v1/openapi.json").text()).unwrap();
    let client = mesh.folder().join("client");
    let run = |program: &str, args: &[&Path]| {
        let output = Command::new(bin.join(program)).args(args).env("PATH", &bin).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = |text: &'static str| Path::new(text);
    run(
        "openapi-python-client",
        &[
            text("generate"),
            text("--path"),
            &document,
            text("--output-path"),
            &client,
            text("--meta"),
            text("none"),
        ],
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http/client.py");
    let (address, token) = (format!("http://{}", mesh.http_address()), token(&mesh, "operator"));
    let printed = run("python3", &[&script, mesh.folder(), Path::new(&address), Path::new(&token)]);
    assert_eq!(printed, "job 1 generated 1\n");
    assert_eq!(remote(&mesh).bearing(&token).get("/api/v1/jobs/1").status, 200);
}
