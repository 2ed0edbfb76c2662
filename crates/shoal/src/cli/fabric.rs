//! Flags of `shoal fabric`.

use clap::{Args, Subcommand, ValueEnum};
use shoal_fabric::{FabricError, Interfaces};

use super::{DiscoverArgs, MachineArgs};

#[derive(Args)]
pub(crate) struct FabricArgs {
    #[command(subcommand)]
    pub(crate) action: FabricAction,
}

#[derive(Subcommand)]
pub(crate) enum FabricAction {
    /// Show devices, ports, links and addresses, warn of what keeps them from working, and propose how to link machines.
    Discover(DiscoverArgs),
    /// Test the links: is every byte right, how late, how fast, and is that what such a link should do?
    Test(LinkTestArgs),
}

#[derive(Args)]
#[command(after_help = "Exit status: 0 when the links are healthy, 1 when they are not.")]
pub(crate) struct LinkTestArgs {
    /// Number of nodes, all on this machine.
    #[arg(long, conflicts_with = "machines", value_parser = clap::value_parser!(u16).range(2..=64))]
    pub(crate) nodes: Option<u16>,
    #[command(flatten)]
    pub(crate) machines: MachineArgs,
    /// What carries the bytes: auto takes shared memory where two ranks are on one machine, then RDMA, then TCP.
    #[arg(long, value_enum, default_value_t = TransportArg::Auto)]
    pub(crate) transport: TransportArg,
    /// Interfaces of this machine that may carry bytes over TCP, such as en5,en6; with ^ in front, those that may not.
    #[arg(long, value_name = "NAME,…", value_parser = interfaces)]
    pub(crate) interfaces: Option<Interfaces>,
    /// Sizes to 16 MiB and 5 rounds.
    #[arg(long, conflicts_with = "stress")]
    pub(crate) quick: bool,
    /// Go on for --seconds after the rest and check every byte.
    #[arg(long)]
    pub(crate) stress: bool,
    /// How long --stress goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "stress", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,
    /// Print each round's time on standard error, and which process is which rank.
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Sizes of the sweep, such as 4K,64K,16M [default: 4K to 256M, to less for many nodes on one machine].
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', value_parser = size_bytes)]
    pub(crate) sizes: Vec<usize>,
    /// Measured rounds at each size; ten times as many up to 1M, fewer on a link too slow for them [default: 20].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: Option<u32>,
    /// Seed of the data; the same seed sends the same [default: random].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TransportArg {
    /// The best that two ranks find.
    Auto,
    /// TCP, on one machine too.
    Tcp,
    /// Shared memory, and nothing else.
    SharedMemory,
    /// RDMA devices, and nothing else.
    Rdma,
    /// MPI, whose mpirun has started this very command on every rank.
    Mpi,
}

fn interfaces(list: &str) -> Result<Interfaces, String> {
    list.parse().map_err(|error: FabricError| error.to_string())
}

/// Takes bytes, or KiB, MiB, GiB with a letter.
fn size_bytes(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<usize>().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| (4..=1 << 30).contains(bytes) && bytes.is_multiple_of(4))
        .ok_or_else(|| "a multiple of 4 bytes from 4 to 1G, such as 4096, 64K or 16M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_binary_multiples() {
        for (text, bytes) in [
            ("4", 4),
            ("4096", 4096),
            ("64K", 65536),
            ("16m", 16 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "K",
            "0",
            "5",
            "2G",
            "-4",
            "4.5K",
            "99999999999999999999",
            "4KB",
            "é",
        ] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }
}
