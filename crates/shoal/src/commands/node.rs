//! `shoal node`: lend this machine to a cell.

use anyhow::{Context, Result};
use shoal_cluster::node::{Node, NodeConfig};
use shoal_cluster::read_token;
use shoal_fabric::resolve;
use tracing::info;

use super::{cell, runtime};
use crate::cli::{LogArgs, NodeArgs};
use crate::progress::{note, say};
use crate::settings::{self, Home};
use crate::signals::Signals;

pub(crate) fn node(args: &NodeArgs, logs: &LogArgs) -> Result<()> {
    let listens = resolve(&args.listen)
        .with_context(|| format!("--listen {} is not HOST:PORT on this machine", args.listen))?;
    let listen = listens
        .first()
        .with_context(|| format!("--listen {} names no address", args.listen))?;
    let node = Node::bind(NodeConfig {
        listen: *listen,
        token: read_token(&args.token_file)?,
        threads: args.threads.map(usize::from),
        isa: args.isa.clone(),
        program: cell::program(logs, "info")?,
        root: match &args.root {
            Some(root) => std::path::absolute(root)?,
            None => Home::locate()?.models(),
        },
        links: settings::transport()?,
    })?;
    let address = node.local_addr()?;
    runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let stopper = node.stopper();
        std::thread::spawn(move || node.serve());
        info!(%address, "waiting for a front");
        // The line that scripts wait for.
        say(&format!("waiting {address}\n"))?;
        let peer = match address.ip().is_unspecified() {
            true => format!("THIS-MACHINE:{}", address.port()),
            false => address.to_string(),
        };
        note(&format!(
            "next, on the machine with the model: shoal serve --model MODEL --peer {peer} --token-file FILE"
        ));
        signals.any().await;
        stopper.stop();
        Ok(())
    })
}
