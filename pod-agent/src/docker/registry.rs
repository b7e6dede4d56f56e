//! Finds the credentials that `docker login` stored on this node for an image's registry. They are
//! read again for each pull, because they expire and are replaced.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use tokio::time::timeout;

/// Docker Hub, the registry of an image whose name contains none, as credentials are stored for it.
const HUB: &str = "https://index.docker.io/v1/";
/// Maximum time for a credential helper.
const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// Returns the folder of Docker's client configuration: `DOCKER_CONFIG`, or `.docker` in the home
/// folder of this process's user.
pub(crate) fn config_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
        return Some(dir.into());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    // A service manager may not set HOME.
    let home = home.or_else(|| {
        nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir)
    });
    home.map(|home| home.join(".docker"))
}

/// Returns the credentials for pulling an image, if there are any.
///
/// # Errors
/// Why configured credentials cannot be read, as a message for people.
pub(super) async fn credentials(
    config_dir: Option<&Path>,
    image: &str,
) -> Result<Option<DockerCredentials>, String> {
    let Some(path) = config_dir.map(|dir| dir.join("config.json")) else { return Ok(None) };
    let server = server_of(image).to_owned();
    let shown = path.display().to_string();
    let of = server.clone();
    // A helper is a program, and may wait for a desktop's keyring.
    let found = tokio::task::spawn_blocking(move || look_up(&path, &of));
    let failed = |why: &str| {
        format!(
            "cannot read the credentials for {server} configured in {shown}: {why}; run `docker login {server}` on that node as the agent's user"
        )
    };
    match timeout(HELPER_LIMIT, found).await {
        Ok(Ok(found)) => found.map_err(|why| failed(&why)),
        Ok(Err(why)) => Err(failed(&why.to_string())),
        Err(_) => {
            Err(failed(&format!("its helper did not answer within {} s", HELPER_LIMIT.as_secs())))
        }
    }
}

fn look_up(path: &Path, server: &str) -> Result<Option<DockerCredentials>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let serveraddress = Some(server.to_owned());
    match get_credential_from_reader(BufReader::new(file), server) {
        Ok(DockerCredential::UsernamePassword(username, password)) => Ok(Some(DockerCredentials {
            username: Some(username),
            password: Some(password),
            serveraddress,
            ..DockerCredentials::default()
        })),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(DockerCredentials {
            identitytoken: Some(token),
            serveraddress,
            ..DockerCredentials::default()
        })),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // Every helper prints this for a registry that it does not know.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. })
            if stdout.contains("credentials not found") =>
        {
            Ok(None)
        }
        Err(CredentialRetrievalError::HelperFailure { helper, stdout, stderr }) => {
            Err(format!("{helper}: {}", [stdout.trim(), stderr.trim()].join(" ").trim()))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the registry of an image, as `docker login` names it: the part before the first `/` if
/// it is a host, otherwise Docker Hub.
fn server_of(image: &str) -> &str {
    match image.split_once('/') {
        Some(("docker.io" | "index.docker.io", _)) => HUB,
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_registry_that_docker_uses() {
        for (image, server) in [
            ("busybox", HUB),
            ("team/app:1", HUB),
            ("docker.io/library/busybox", HUB),
            ("localhost/app", "localhost"),
            ("registry.lan:5000/team/app@sha256:00", "registry.lan:5000"),
            ("ghcr.io/team/app", "ghcr.io"),
        ] {
            assert_eq!(server_of(image), server);
        }
    }

    #[tokio::test]
    async fn a_missing_configuration_is_ignored_and_an_invalid_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let of = async |image| credentials(Some(dir.path()), image).await;
        assert_eq!(of("x.lan/a").await, Ok(None));
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        let said = of("x.lan/a").await.unwrap_err();
        assert!(said.contains("x.lan") && said.contains("config.json"), "{said}");
        // echo -n me:secret | base64
        let text = r#"{"auths": {"x.lan": {"auth": "bWU6c2VjcmV0"}}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert_eq!(of("y.lan/a").await, Ok(None));
        let found = of("x.lan/a").await.unwrap().unwrap();
        assert_eq!(
            (found.username.as_deref(), found.password.as_deref()),
            (Some("me"), Some("secret"))
        );
        assert_eq!(credentials(None, "x.lan/a").await, Ok(None));
    }

    /// The helper is found through `PATH`, so this test runs itself in a process with another
    /// `PATH`.
    #[test]
    fn a_helper_is_called_and_may_have_no_credentials() {
        use std::os::unix::fs::PermissionsExt;
        const DIR: &str = "PODMESH_TEST_HELPER_DIR";
        if let Some(dir) = std::env::var_os(DIR) {
            let path = Path::new(&dir).join("config.json");
            let found = look_up(&path, "x.lan").unwrap().unwrap();
            assert_eq!(found.username.as_deref(), Some("me"));
            assert_eq!(found.password.as_deref(), Some("x.lan's secret"));
            assert_eq!(look_up(&path, "unknown.lan").unwrap(), None);
            let said = look_up(&path, "broken.lan").unwrap_err();
            assert!(said.contains("the keyring is locked"), "{said}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("docker-credential-test");
        let script = r#"#!/bin/sh
read server
case $server in
    x.lan) echo '{"Username": "me", "Secret": "x.lan'"'"'s secret"}' ;;
    broken.lan) echo "the keyring is locked"; exit 1 ;;
    *) echo "credentials not found in native keychain"; exit 1 ;;
esac
"#;
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"credsStore": "test"}"#).unwrap();
        let path = std::env::join_paths([dir.path(), Path::new("/usr/bin"), Path::new("/bin")]);
        let name = std::thread::current().name().unwrap().to_owned();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&name, "--exact", "--nocapture"])
            .env("PATH", path.unwrap())
            .env(DIR, dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[tokio::test]
    async fn a_missing_helper_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"credHelpers": {"x.lan": "podmesh-has-none"}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let said = credentials(Some(dir.path()), "x.lan/a").await.unwrap_err();
        assert!(said.contains("x.lan") && said.contains("docker login"), "{said}");
        assert_eq!(credentials(Some(dir.path()), "y.lan/a").await, Ok(None));
    }
}
