//! `shoal cp`: its flags, and what its sources and destinations are called.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments here are help texts"
)]

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Args)]
#[command(
    override_usage = "shoal cp [OPTIONS] --token-file FILE SRC… HOST[:PORT]:DST
       shoal cp [OPTIONS] --token-file FILE HOST[:PORT]:SRC… DST
       shoal cp [OPTIONS] --token-file FILE --peer HOST:PORT… SRC… all:DST",
    after_help = "On a node, paths are relative to the folder it serves: its model store, or `shoal node --root DIR`.
The port is 7070 unless it is given; an IPv6 address stands in brackets. A file here with a colon in
its name is ./a:b. With a / at its end DST is a folder to copy into; without, it may be a new name.

  shoal cp --token-file F model.gguf 192.168.1.20:7070:m/   to a node
  shoal cp --token-file F 192.168.1.20:m/model.gguf .       from a node
  shoal cp --token-file F --peer A:7070 --peer B:7070 ~/m all:   to every node, read once
  shoal cp --token-file F [fd00::2]:7070:m here/            over IPv6

Folders are copied with all in them. Only chunks that the other end lacks are sent; a copy that was
cut off goes on where it stopped when the same command is given again."
)]
pub(crate) struct CopyArgs {
    /// Files and folders, and where they go; the nodes' side is HOST:PORT:PATH or all:PATH.
    #[arg(value_name = "SRC… DST", required = true, num_args = 2..)]
    pub(crate) paths: Vec<String>,
    /// File with the token that the nodes were started with.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// A node that `all:` means, as HOST:PORT (7070 unless given); once for each. Each passes the files on to the next.
    #[arg(long, value_name = "HOST:PORT", value_parser = node_address)]
    pub(crate) peer: Vec<String>,
    /// Read again what was written, and compare, before a file gets its name.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Most bytes a second to send, such as 50M; K, M and G are powers of 1000.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) limit_rate: Option<u64>,
    /// What carries the files' bytes: auto takes RDMA where both machines have it, then TCP over every cable they share.
    #[arg(long, value_enum, default_value_t = CopyTransportArg::Auto)]
    pub(crate) transport: CopyTransportArg,
    /// Data connections over TCP in all; a few more where several cables are to have as many each [default: one for each core,
    /// 4 at most].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) connections: Option<u8>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CopyTransportArg {
    /// The best that the two machines find.
    Auto,
    /// TCP.
    Tcp,
    /// RDMA devices, and nothing else.
    Rdma,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here(String),
    Node { address: String, path: String },
    AllNodes { path: String },
}

impl Place {
    /// A colon before any slash tells a node, as with other copying programs.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("all:") {
            return Ok(Self::AllNodes {
                path: path.to_owned(),
            });
        }
        let host_end = match text.starts_with('[') {
            true => text.find("]:").map(|end| end + 1),
            false => text.find(':'),
        };
        let Some(host_end) = host_end.filter(|end| *end > 0 && !text[..*end].contains('/')) else {
            return Ok(Self::Here(text.to_owned()));
        };
        let (host, rest) = (&text[..host_end], &text[host_end + 1..]);
        let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
        let (port, path) = match rest.split_once(':') {
            Some((port, path)) if is_port(port) => (port.to_owned(), path),
            _ if is_port(rest) => {
                return Err(format!(
                    "{text} could be a port or a path: {text}: is the folder that the node serves, {host}:{DEFAULT_PORT}:{rest} \
                     a path in it, ./{text} a file here"
                ));
            }
            _ => (DEFAULT_PORT.to_string(), rest),
        };
        Ok(Self::Node {
            address: format!("{host}:{port}"),
            path: path.to_owned(),
        })
    }
}

/// Takes the address of a node: HOST or HOST:PORT.
pub(crate) fn node_address(text: &str) -> Result<String, String> {
    const HELP: &str = "HOST or HOST:PORT, an IPv6 address in brackets, such as [fd00::2]:7070";
    let is_bracketed = text.starts_with('[');
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !is_bracketed || host.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_fits = match is_bracketed {
        true => host.len() > 2 && host.ends_with(']'),
        // What looks like a port could be the end of a bare IPv6 address.
        false => !host.is_empty() && !host.contains(':'),
    };
    match port.map(str::parse::<u16>) {
        None if host_fits => Ok(format!("{host}:{DEFAULT_PORT}")),
        Some(Ok(1..)) if host_fits => Ok(text.to_owned()),
        _ => Err(HELP.to_owned()),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    const HELP: &str = "a number of bytes a second, such as 500K, 50M or 1.5G";
    let (number, unit) = match text.find(|letter: char| letter.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit {
        "" => 1.0,
        "K" | "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => return Err(HELP.to_owned()),
    };
    let rate = number.parse::<f64>().map_err(|_| HELP)? * unit;
    if (1.0..1e15).contains(&rate) {
        Ok(rate as u64)
    } else {
        Err(HELP.to_owned())
    }
}

/// Where a node is awaited when nobody says otherwise.
pub(crate) const DEFAULT_PORT: u16 = 7070;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_tells_a_node() {
        let node = |address: &str, path: &str| Place::Node {
            address: address.to_owned(),
            path: path.to_owned(),
        };
        let here = |path: &str| Place::Here(path.to_owned());
        let cases = [
            ("m.gguf", here("m.gguf")),
            ("./a:b", here("./a:b")),
            ("/a/b:7070:c", here("/a/b:7070:c")),
            (":x", here(":x")),
            ("[x", here("[x")),
            ("host:7070:", node("host:7070", "")),
            ("host:7070:m/", node("host:7070", "m/")),
            ("10.0.0.1:1:a:b", node("10.0.0.1:1", "a:b")),
            ("host:m/x", node("host:7070", "m/x")),
            ("host:", node("host:7070", "")),
            ("host:m:x", node("host:7070", "m:x")),
            ("host:0:x", node("host:7070", "0:x")),
            ("[::1]:7071:x", node("[::1]:7071", "x")),
            ("[::1]:x", node("[::1]:7070", "x")),
        ];
        for (text, place) in cases {
            assert_eq!(Place::parse(text), Ok(place), "{text}");
        }
        let all = Place::AllNodes {
            path: "m/".to_owned(),
        };
        assert_eq!(Place::parse("all:m/"), Ok(all));
        assert!(
            Place::parse("host:7070")
                .unwrap_err()
                .contains("./host:7070")
        );
    }

    #[test]
    fn a_node_without_a_port_is_at_the_usual_one() {
        for (text, address) in [
            ("mac2.local", "mac2.local:7070"),
            ("10.0.0.1", "10.0.0.1:7070"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[fd00::2]", "[fd00::2]:7070"),
            ("[fd00::2]:1", "[fd00::2]:1"),
        ] {
            assert_eq!(node_address(text).as_deref(), Ok(address));
        }
        for text in [
            "",
            ":1",
            "a:",
            "a:0",
            "a:b",
            "a:65536",
            "fd00::2:7070",
            "[]:1",
            "[::1",
        ] {
            assert!(node_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_have_units_of_a_thousand() {
        assert_eq!(
            ["7", "500K", "1.5G", "20M"].map(rate),
            [Ok(7), Ok(500_000), Ok(1_500_000_000), Ok(20_000_000)]
        );
        for text in ["", "M", "0", "-1", "1X", "1MB", "nan", "inf", "é"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
