//! `shoal node`: lend this machine to a cell.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result};
use shoal_cluster::node::{Node, NodeConfig};
use shoal_cluster::read_token;
use tracing::info;

use super::{cell, runtime};
use crate::cli::{LogArgs, NodeArgs};

pub(crate) fn node(args: &NodeArgs, logs: &LogArgs) -> Result<()> {
    let listen = args
        .listen
        .to_socket_addrs()
        .with_context(|| format!("--listen {} is not HOST:PORT on this machine", args.listen))?
        .next()
        .with_context(|| format!("--listen {} names no address", args.listen))?;
    let node = Node::bind(NodeConfig {
        listen,
        token: read_token(&args.token_file)?,
        threads: args.threads.map(usize::from),
        isa: args.isa.clone(),
        program: cell::program(logs, "info")?,
    })?;
    let address = node.local_addr()?;
    info!(%address, "waiting for a front");
    announce(address);
    let stopper = node.stopper();
    std::thread::spawn(move || node.serve());
    runtime()?.block_on(cell::stop_signal())?;
    stopper.stop();
    Ok(())
}

/// The line that scripts wait for, and the next step.
#[expect(clippy::print_stdout, reason = "the address is this command's output")]
fn announce(address: SocketAddr) {
    println!("waiting {address}");
    eprintln!(
        "next, on the machine with the model: shoal serve --model MODEL --peer {address} --token-file FILE"
    );
}
