//! The arguments of `volume`.

use clap::{Args, Subcommand};
use podmesh_protocol::ids::Name;

/// `volume`.
#[derive(Args, Debug)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    pub(crate) verb: VolumeVerb,
}

/// `volume …`.
#[derive(Subcommand, Debug)]
pub(crate) enum VolumeVerb {
    /// Remove volumes, with all their data
    ///
    /// A volume that a service or a job uses is not removed. If the node of a volume does not
    /// answer, it removes the volume when it is back.
    #[command(after_help = "Example: podmesh volume remove data")]
    Remove {
        /// Names of the volumes
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<Name>,
        /// Forget the volumes without their nodes, which may never come back. If one does, the data
        /// is still there
        #[arg(long)]
        force: bool,
    },
}
