//! Finds the NVIDIA GPUs of the machine.

use std::path::Path;

/// Where the driver describes them: a folder for each.
pub const NVIDIA_GPUS: &str = "/proc/driver/nvidia/gpus";

/// Returns the UUIDs of the GPUs that the driver describes in a folder, in the order of their bus
/// addresses; none without a driver. What cannot be read is left out.
pub fn detect_gpus(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let uuid = |folder: std::path::PathBuf| {
        uuid_of(&std::fs::read_to_string(folder.join("information")).ok()?)
    };
    folders.into_iter().filter_map(uuid).collect()
}

/// Returns the UUID in the description of a GPU. The driver writes `??` in its place until the GPU is
/// first used.
fn uuid_of(information: &str) -> Option<String> {
    let (_, uuid) = information
        .lines()
        .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == "GPU UUID"))?;
    let uuid = uuid.trim();
    (uuid.starts_with("GPU-") && !uuid.contains('?')).then(|| uuid.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn information(uuid: &str) -> String {
        format!(
            "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 38\nGPU UUID: \t {uuid}\nVideo BIOS: \t 92.00.19.00.01\nBus Type: \t PCIe\nBus Location: \t 0000:07:00.0\n"
        )
    }

    #[test]
    fn gpus_are_found_in_the_order_of_their_bus() {
        let dir = tempfile::tempdir().unwrap();
        for (bus, uuid) in [
            ("0000:0f:00.0", "GPU-bbbbbbbb-0000-0000-0000-000000000002"),
            ("0000:07:00.0", "GPU-aaaaaaaa-0000-0000-0000-000000000001"),
            ("0000:11:00.0", "GPU-????????-????-????-????-????????????"),
        ] {
            std::fs::create_dir(dir.path().join(bus)).unwrap();
            std::fs::write(dir.path().join(bus).join("information"), information(uuid)).unwrap();
        }
        std::fs::create_dir(dir.path().join("0000:12:00.0")).unwrap();
        let found = detect_gpus(dir.path());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("GPU-aaaaaaaa") && found[1].starts_with("GPU-bbbbbbbb"));
        assert!(detect_gpus(&dir.path().join("none")).is_empty());
    }
}
