//! rsync over an ssh server of its own on loopback, with keys of its own.

use super::{Sample, place::Place};
use crate::shell::{check, command, output};
use anyhow::{Context, Result, ensure};
use std::{
    io::{self, BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Instant,
};

/// The server, which ends when this does.
pub(crate) struct Rsync {
    server: Child,
    port: u16,
    key: PathBuf,
}

impl Rsync {
    /// Makes keys in `folder` and starts the server.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        output(command("rsync").arg("--version"))?;
        let [key, host_key] = ["key", "host_key"].map(|name| folder.join(name));
        for key in [&key, &host_key] {
            if !key.exists() {
                let mut keygen = command("ssh-keygen");
                check(
                    keygen
                        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                        .arg(key),
                )?;
            }
        }
        let authorized = folder.join("key.pub");
        // It has to be told before it listens.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let program = SERVERS.into_iter().find(|path| Path::new(path).exists());
        let mut server = command(program.context("there is no sshd")?)
            .args(["-D", "-e", "-f", "/dev/null", "-p", &port.to_string(), "-h"])
            .arg(&host_key)
            .arg("-o")
            .arg(format!("AuthorizedKeysFile={}", authorized.display()))
            .args(["-o", "ListenAddress=127.0.0.1", "-o", "StrictModes=no"])
            .args(["-o", "UsePAM=no", "-o", "PidFile=none"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting sshd")?;
        let log = server.stderr.take();
        // From here on it is ended, whatever happens.
        let rsync = Self { server, port, key };
        let mut log = BufReader::new(log.context("sshd has no log")?);
        let mut line = String::new();
        log.read_line(&mut line)?;
        ensure!(line.contains("listening"), "sshd said `{}`", line.trim());
        // What it says later has to go somewhere.
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        Ok(rsync)
    }

    pub(crate) fn measure(&self, place: &Place) -> Result<Sample> {
        let shell = format!(
            "ssh -p {} -i {} -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            self.port,
            self.key.display()
        );
        let to = format!("127.0.0.1:{}/", place.destination().display());
        let began = Instant::now();
        let mut rsync = command("rsync");
        rsync.args(["-a", "--whole-file", "-e", &shell]);
        output(rsync.arg(place.file()).arg(to))?;
        Ok(Sample {
            seconds: began.elapsed().as_secs_f64(),
            // The server's part is nobody's child here.
            processor_seconds: None,
        })
    }
}

impl Drop for Rsync {
    fn drop(&mut self) {
        let _it_may_have_ended = self.server.kill();
        let _it_is_gone = self.server.wait();
    }
}

/// It wants to be called by its whole path.
const SERVERS: [&str; 2] = ["/usr/sbin/sshd", "/usr/bin/sshd"];
