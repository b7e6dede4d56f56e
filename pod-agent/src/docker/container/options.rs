//! The parts of a container's configuration that a job's options determine.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    DeviceMapping as EngineDevice, DeviceRequest, Mount as EngineMount, MountType,
    MountVolumeOptions, ResourcesUlimits,
};
use podmesh_agent_core::replica::Replica;
use podmesh_protocol::ids::ClusterId;
use podmesh_protocol::place::Claims;
use podmesh_protocol::spec::{DeviceMapping, DockerSpec, Ulimit, VolumeMount};

use super::super::volumes;
use super::{CLUSTER, NO_CORE_FILES};
use crate::policy::NodePolicy;

/// The label of a named volume with its name in podmesh.
const VOLUME: &str = "podmesh.volume";
/// The label of a named volume with the service that made it, if it was a service.
const SERVICE: &str = "podmesh.service";

/// Returns the capabilities of a container. The engine's own default does not count.
pub(super) fn capabilities(policy: &NodePolicy, spec: &DockerSpec) -> Vec<String> {
    let dropped = |name: &&String| spec.cap_drop.iter().any(|drop| drop == "ALL" || drop == *name);
    let kept = policy.default_capabilities.iter().filter(|name| !dropped(name));
    let mut names: Vec<String> = kept.chain(&spec.cap_add).cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns the security options. The job's come last, so that the node's owner can allow one that
/// undoes the first.
pub(super) fn security_opt(spec: &DockerSpec) -> Vec<String> {
    ["no-new-privileges".to_owned()].into_iter().chain(spec.security_opt.iter().cloned()).collect()
}

/// Returns the limits of the job, and that there are no core files.
pub(super) fn ulimits(spec: &DockerSpec) -> Vec<ResourcesUlimits> {
    let (name, limit) = NO_CORE_FILES;
    let own = [(name.to_owned(), Ulimit { soft: limit, hard: limit })];
    let all: BTreeMap<String, Ulimit> = spec.ulimits.clone().into_iter().chain(own).collect();
    let limit = |(name, Ulimit { soft, hard })| ResourcesUlimits {
        name: Some(name),
        soft: Some(soft),
        hard: Some(hard),
    };
    all.into_iter().map(limit).collect()
}

/// Returns the devices.
///
/// # Errors
/// If one cannot be parsed.
pub(super) fn devices(spec: &DockerSpec, claims: &Claims) -> Result<Vec<EngineDevice>, String> {
    let device = |text: &String| {
        let device: DeviceMapping =
            text.parse().map_err(|why: podmesh_protocol::spec::SpecError| why.to_string())?;
        Ok(EngineDevice {
            path_on_host: Some(device.source),
            path_in_container: Some(device.target),
            cgroup_permissions: Some(device.access),
        })
    };
    // The node's owner offers the devices of claims, which needs no other leave.
    let claimed = ids(claims).filter(|id| id.starts_with("/dev/"));
    spec.devices.iter().chain(claimed).map(device).collect()
}

/// Returns the request for the NVIDIA GPUs that an attempt has, if any.
pub(super) fn gpus(claims: &Claims) -> Option<Vec<DeviceRequest>> {
    let of_nvidia = |id: &&String| id.starts_with("GPU-") || id.starts_with("MIG-");
    let ids: Vec<String> = ids(claims).filter(of_nvidia).cloned().collect();
    let request = |ids| DeviceRequest {
        driver: Some("nvidia".into()),
        device_ids: Some(ids),
        capabilities: Some(vec![vec!["gpu".into()]]),
        ..DeviceRequest::default()
    };
    (!ids.is_empty()).then(|| vec![request(ids)])
}

fn ids(claims: &Claims) -> impl Iterator<Item = &String> {
    claims.values().flat_map(|claim| &claim.ids)
}

/// Returns the mount of a named volume. The engine creates the volume with these labels if it is
/// missing.
pub(super) fn volume(
    volume: &VolumeMount,
    cluster: ClusterId,
    replica: Option<&Replica>,
) -> EngineMount {
    let service = replica.map(|replica| (SERVICE, replica.spec.service.to_string()));
    let labels = [(CLUSTER, cluster.to_string()), (VOLUME, volume.volume.to_string())];
    let labels: HashMap<String, String> =
        labels.into_iter().chain(service).map(|(name, value)| (name.to_owned(), value)).collect();
    EngineMount {
        typ: Some(MountType::VOLUME),
        source: Some(volumes::engine_name(&volume.volume)),
        target: Some(volume.target.clone()),
        read_only: Some(volume.read_only),
        volume_options: Some(MountVolumeOptions {
            labels: Some(labels),
            ..MountVolumeOptions::default()
        }),
        ..EngineMount::default()
    }
}
