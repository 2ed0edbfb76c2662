//! The flags that name other machines.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::node_address;

/// Machines that run `shoal node`; shared by the commands that start ranks on them.
#[derive(Args)]
#[command(group(ArgGroup::new("machines").args(["peer", "hostfile"])))]
pub(crate) struct MachineArgs {
    /// A machine that runs `shoal node`, as HOST:PORT (7070 unless given); once for each. This machine is rank 0.
    #[arg(long, value_name = "HOST:PORT", requires = "token_file", value_parser = node_address)]
    pub(crate) peer: Vec<String>,
    /// The machines as a hostfile of mlx.launch lists them: the first is this one, the others run `shoal node` at port 7070.
    #[arg(long, value_name = "FILE", requires = "token_file")]
    pub(crate) hostfile: Option<PathBuf>,
    /// File with the token that the nodes were started with.
    #[arg(long, value_name = "FILE", requires = "machines")]
    pub(crate) token_file: Option<PathBuf>,
}
