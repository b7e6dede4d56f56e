//! How a task learns what it has of the named resources of the node.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::Name;
use podmesh_protocol::place::{Claims, Offer, WHOLE, resource_variable};

use crate::step::JobContext;

/// The resource whose ids are those of GPUs.
const GPU: &str = "gpu";

/// Returns how to run an attempt that has named resources: with variables that say which. These
/// override the job's own.
///
/// `PODMESH_GPU=0,2` are positions in what the node offers, and `PODMESH_GPU_IDS` the ids. Without ids,
/// `PODMESH_LICENSE=3` is the number. `CUDA_VISIBLE_DEVICES` has the ids of GPUs.
///
/// # Errors
/// Why the attempt cannot be started, for people: the node no longer offers an id.
pub(crate) fn with_claims(
    context: &JobContext,
    claims: Claims,
    offers: &BTreeMap<Name, Offer>,
) -> Result<Arc<JobContext>, String> {
    let mut context = context.clone();
    let env = &mut context.run.env;
    for (name, claim) in &claims {
        let variable = resource_variable(name);
        if claim.ids.is_empty() {
            env.insert(variable, (claim.millis / WHOLE).to_string());
            continue;
        }
        let offered = offers.get(name).map_or(&[][..], |offer| &offer.ids);
        let mut positions = Vec::new();
        for id in &claim.ids {
            let Some(at) = offered.iter().position(|offered| offered == id) else {
                return Err(format!("the node no longer offers {name} {id} (agent.toml)"));
            };
            positions.push(at.to_string());
        }
        let ids = claim.ids.join(",");
        env.insert(format!("{variable}_IDS"), ids.clone());
        env.insert(variable, positions.join(","));
        if name.as_str() == GPU {
            env.insert("CUDA_VISIBLE_DEVICES".into(), ids);
        }
    }
    context.claims = claims;
    Ok(Arc::new(context))
}
