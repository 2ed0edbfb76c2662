//! A node on loopback, and the command that copies to it.

use super::{
    Sample,
    place::{Place, processor_seconds},
};
use crate::{
    ci,
    shell::{command, output, target},
};
use anyhow::{Context, Result};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    time::Instant,
};

/// The release binary and a node of it, which ends when this does.
pub(crate) struct Shoal {
    program: PathBuf,
    token: PathBuf,
    node: Child,
    address: String,
}

impl Shoal {
    /// Builds the binary and has a node serve where the file goes.
    pub(crate) fn start(place: &Place) -> Result<Self> {
        ci::release()?;
        let program = target()?.join("release/shoal");
        let token = place.folder().join("token");
        fs::write(&token, "a token for a measurement\n")
            .with_context(|| format!("writing {}", token.display()))?;
        let mut node = command(&program)
            .args(["node", "--listen", "127.0.0.1:0", "--token-file"])
            .arg(&token)
            .arg("--root")
            .arg(place.destination())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting a node")?;
        let said = node.stdout.take();
        // From here on it is ended, whatever happens.
        let mut shoal = Self {
            program,
            token,
            node,
            address: String::new(),
        };
        let mut line = String::new();
        let mut said = BufReader::new(said.context("the node has no output")?);
        said.read_line(&mut line)?;
        let line = line.trim();
        let address = line.strip_prefix("waiting ");
        shoal.address = address
            .with_context(|| format!("the node said `{line}`"))?
            .to_owned();
        Ok(shoal)
    }

    pub(crate) fn measure(&self, place: &Place, connections: u8) -> Result<Sample> {
        let node = self.node.id().to_string();
        let times = || {
            let (here, there) = (processor_seconds("self")?, processor_seconds(&node)?);
            Some(here.children + there.own)
        };
        let before = times();
        let began = Instant::now();
        output(
            command(&self.program)
                .args(["cp", "--json", "--connections", &connections.to_string()])
                .arg("--token-file")
                .arg(&self.token)
                .arg(place.file())
                .arg(format!("{}:", self.address)),
        )?;
        let seconds = began.elapsed().as_secs_f64();
        let times = before.zip(times());
        Ok(Sample {
            seconds,
            processor_seconds: times.map(|(before, after)| after - before),
        })
    }
}

impl Drop for Shoal {
    fn drop(&mut self) {
        let _it_may_have_ended = self.node.kill();
        let _it_is_gone = self.node.wait();
    }
}
