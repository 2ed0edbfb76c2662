//! Flags of `shoal fabric discover`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Args)]
#[command(after_help = "\
Nothing is changed on any machine without --apply, which Macs only have. For several machines, run it with --json on each, \
bring the files together, and give those of the others by --from on the one that is to be rank 0:
  shoal fabric discover --json > mac2.json                        on mac2
  shoal fabric discover --from mac2.json --hostfile hosts.json    on mac1")]
pub(crate) struct DiscoverArgs {
    /// What another machine printed with --json; once for each.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Vec<PathBuf>,
    /// Link the machines over this [default: thunderbolt if its cables make a mesh or a ring].
    #[arg(long, value_enum)]
    pub(crate) over: Option<OverArg>,
    /// Write the proposed hostfile, for shoal and for mlx.launch; a file that is there already is left as it is.
    #[arg(long, value_name = "FILE")]
    pub(crate) hostfile: Option<PathBuf>,
    /// Run the proposed commands of this machine, with sudo (macOS).
    #[arg(long)]
    pub(crate) apply: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the cables as a graph for GraphViz.
    #[arg(long, conflicts_with = "json")]
    pub(crate) dot: bool,
    /// Root of sysfs.
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true)]
    pub(crate) sys: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum OverArg {
    /// Cables between the machines.
    Thunderbolt,
    /// A network that all machines are on.
    Ethernet,
}
