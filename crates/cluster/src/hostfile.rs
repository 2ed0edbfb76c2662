//! The list of machines that `mlx.launch` reads, and what it gives to each rank: so that one file serves both programs.
//!
//! A [`Hostfile`] is read from either of its two forms (a bare list of hosts, or an object with a backend and variables
//! around it) and written in the form it has. [`launched`] says what a process finds in its environment when `mlx.launch`
//! started it.

mod environment;
mod matrix;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_fabric::WORLD_MAX;
use thiserror::Error;

pub use environment::{EnvironmentError, launched};
pub use matrix::{Devices, Matrix, MatrixError};

/// Machines in the order of their ranks, and how they are linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostfile {
    /// How the ranks talk; `None` leaves it to the program that reads the file.
    pub backend: Option<Backend>,
    /// Variables for every rank, each `NAME=VALUE`.
    pub envs: Vec<String>,
    /// One host for each rank.
    pub hosts: Vec<Host>,
}

/// One machine of a [`Hostfile`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// How it is reached by ssh: `HOST` or `USER@HOST`.
    pub ssh: String,
    /// Its addresses. For a ring, those at which the rank before it connects; for RDMA only rank 0's first one counts.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Its RDMA devices by which each rank is reached; empty where there is no RDMA.
    #[serde(default)]
    pub rdma: Vec<Devices>,
}

/// How the ranks of a hostfile talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// TCP between neighbours.
    Ring,
    /// RDMA between every two ranks.
    Jaccl,
    /// RDMA between neighbours.
    JacclRing,
    /// An MPI library.
    Mpi,
    /// NVIDIA's library.
    Nccl,
}

/// A hostfile cannot be used. Whoever wrote the file can fix it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostfileError {
    /// The file is out of reach.
    #[error("cannot read the hostfile {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write the hostfile {}: {source}; choose another path", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is no hostfile.
    #[error(
        "the hostfile is not understood ({0}); it is a JSON list of {{\"ssh\": …, \"ips\": […], \"rdma\": […]}}, or an \
         object with \"hosts\" as that list"
    )]
    Format(#[from] serde_json::Error),
    /// It names nobody.
    #[error("the hostfile names no host; give one for each rank")]
    Empty,
    /// It names more hosts than a group has ranks.
    #[error("the hostfile names {0} hosts, and at most {WORLD_MAX} can work together")]
    TooMany(usize),
    /// A host without a name.
    #[error(
        "host {0} of the hostfile has an empty \"ssh\"; give its host name, or 127.0.0.1 for this machine"
    )]
    NoName(usize),
    /// Its devices do not fit together.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
}

impl Hostfile {
    /// Reads a file in either form.
    ///
    /// # Errors
    /// [`HostfileError`], saying what to change.
    pub fn read(path: &Path) -> Result<Self, HostfileError> {
        let text = fs::read_to_string(path).map_err(|source| HostfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Takes the text of a file in either form, and checks what every backend needs.
    ///
    /// # Errors
    /// [`HostfileError`], saying what to change.
    pub fn parse(text: &str) -> Result<Self, HostfileError> {
        // Told apart by hand: serde's untagged enums lose the place and the cause of an error.
        let hostfile = if text.trim_start().starts_with('[') {
            Self {
                backend: None,
                envs: Vec::new(),
                hosts: serde_json::from_str(text)?,
            }
        } else {
            let form: Object = serde_json::from_str(text)?;
            Self {
                backend: form.backend.known()?,
                envs: form.envs,
                hosts: form.hosts,
            }
        };
        hostfile.check_form()?;
        Ok(hostfile)
    }

    /// Returns which devices lead from whom to whom; hosts without a row have no devices.
    ///
    /// # Errors
    /// [`MatrixError`] when a row does not fit the number of hosts.
    pub fn matrix(&self) -> Result<Matrix, MatrixError> {
        let world = self.hosts.len();
        let row = |host: &Host| match host.rdma.is_empty() {
            true => vec![Devices::default(); world],
            false => host.rdma.clone(),
        };
        Matrix::new(self.hosts.iter().map(row).collect(), &self.names())
    }

    /// Returns the file's text, in the list form where there is nothing but hosts.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = match (self.backend, self.envs.is_empty()) {
            (None, true) => pretty(&self.hosts),
            _ => pretty(&Object {
                backend: MaybeBackend(self.backend.map(|it| it.name().to_owned())),
                envs: self.envs.clone(),
                hosts: self.hosts.clone(),
            }),
        };
        text + "\n"
    }

    /// Writes the file, which must not be there yet.
    ///
    /// # Errors
    /// [`HostfileError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), HostfileError> {
        let file = File::create_new(path);
        let written = file.and_then(|mut file| file.write_all(self.to_text().as_bytes()));
        written.map_err(|source| HostfileError::Write {
            path: path.to_owned(),
            source,
        })
    }

    fn names(&self) -> Vec<&str> {
        self.hosts.iter().map(|host| host.ssh.as_str()).collect()
    }

    fn check_form(&self) -> Result<(), HostfileError> {
        if self.hosts.is_empty() {
            return Err(HostfileError::Empty);
        }
        if self.hosts.len() > WORLD_MAX {
            return Err(HostfileError::TooMany(self.hosts.len()));
        }
        if let Some(index) = self.hosts.iter().position(|host| host.host().is_empty()) {
            return Err(HostfileError::NoName(index));
        }
        self.matrix()?;
        Ok(())
    }
}

impl Host {
    /// Returns the host's name or address without the user.
    #[must_use]
    pub fn host(&self) -> &str {
        self.ssh
            .rsplit_once('@')
            .map_or(self.ssh.as_str(), |(_, host)| host)
            .trim()
    }

    /// Returns where a node on it listens: at its first address, or else at its name, at `port`.
    #[must_use]
    pub fn address(&self, port: u16) -> String {
        let host = self
            .ips
            .first()
            .map_or_else(|| self.host().to_owned(), IpAddr::to_string);
        match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }
}

impl Backend {
    /// Returns its name in hostfiles and on `mlx.launch`'s command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Jaccl => "jaccl",
            Self::JacclRing => "jaccl-ring",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }
}

/// The newer form.
#[derive(Serialize, Deserialize)]
struct Object {
    #[serde(default)]
    backend: MaybeBackend,
    #[serde(default)]
    envs: Vec<String>,
    hosts: Vec<Host>,
}

/// A backend's name; the empty one stands for none.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct MaybeBackend(Option<String>);

impl MaybeBackend {
    fn known(self) -> Result<Option<Backend>, serde_json::Error> {
        match self.0.as_deref() {
            None | Some("") => Ok(None),
            Some(name) => serde_json::from_value(name.into()).map(Some),
        }
    }
}

/// Indented by four, as `mlx.distributed_config` writes it.
fn pretty(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .expect("hosts are plain data");
    String::from_utf8(bytes).expect("JSON is text")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = r#"[
        {"ssh": "mac1.local", "ips": ["192.168.1.14"], "rdma": [null, "rdma_en4"]},
        {"ssh": "mac2.local", "ips": [], "rdma": ["rdma_en4", null]}
    ]"#;

    fn message(text: &str) -> String {
        Hostfile::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_list_form_is_read() {
        let hostfile = Hostfile::parse(LIST).unwrap();
        assert_eq!(hostfile.backend, None);
        assert_eq!(hostfile.hosts[0].address(7070), "192.168.1.14:7070");
        assert_eq!(hostfile.hosts[1].address(7070), "mac2.local:7070");
        assert_eq!(
            hostfile.hosts[1].rdma,
            [Devices::from(["rdma_en4"]), Devices::default()]
        );
        assert!(hostfile.to_text().starts_with("[\n    {\n        \"ssh\""));
    }

    #[test]
    fn the_object_form_is_read() {
        let hostfile = Hostfile::parse(
            r#"{"backend": "jaccl-ring", "envs": ["A=1"], "hosts": [
                {"ssh": "a@mac1", "rdma": [null, ["rdma_en2", "rdma_en3"]]},
                {"ssh": "mac2", "rdma": [["rdma_en2", "rdma_en3"], null], "ips": ["fe80::1"]}
            ]}"#,
        )
        .unwrap();
        assert_eq!(hostfile.backend, Some(Backend::JacclRing));
        assert_eq!(hostfile.envs, ["A=1"]);
        assert_eq!(hostfile.hosts[0].address(7070), "mac1:7070");
        assert_eq!(hostfile.hosts[1].address(1), "[fe80::1]:1");
        let plain = Hostfile::parse(r#"{"hosts": [{"ssh": "127.0.0.1"}], "backend": ""}"#).unwrap();
        assert_eq!(plain.backend, None);
    }

    #[test]
    fn what_is_no_hostfile_is_told() {
        for (text, part) in [
            ("", "is not understood"),
            ("{}", "missing field `hosts`"),
            ("[1]", "expected struct Host"),
            (r#"[{"ips": []}]"#, "missing field `ssh`"),
            (r#"[{"ssh": "a", "ips": ["b"]}]"#, "invalid IP address"),
            (
                r#"[{"ssh": "a", "rdma": [7]}]"#,
                "null, a name or a list of names",
            ),
            (r#"{"backend": "x", "hosts": []}"#, "unknown variant `x`"),
            ("[]", "names no host"),
            (r#"[{"ssh": "me@"}]"#, "host 0 of the hostfile has an empty"),
        ] {
            let message = message(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn hosts_are_bounded() {
        let hosts = vec![r#"{"ssh": "a"}"#; WORLD_MAX + 1].join(",");
        assert_eq!(
            message(&format!("[{hosts}]")),
            "the hostfile names 1025 hosts, and at most 1024 can work together"
        );
    }

    #[test]
    fn a_file_is_written_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.json");
        let hostfile = Hostfile::parse(LIST).unwrap();
        hostfile.write(&path).unwrap();
        assert_eq!(Hostfile::read(&path).unwrap(), hostfile);
        let error = Hostfile::read(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the hostfile "), "{error}");
        let error = hostfile.write(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("; choose another path"), "{error}");
        fs::write(&path, "mine").unwrap();
        hostfile.write(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    fn devices() -> impl Strategy<Value = Devices> {
        prop::collection::vec("rdma_en[0-9]", 0..3).prop_map(Devices::from_iter)
    }

    fn hostfiles() -> impl Strategy<Value = Hostfile> {
        let backend = prop::sample::select(vec![
            None,
            Some(Backend::Ring),
            Some(Backend::Jaccl),
            Some(Backend::JacclRing),
            Some(Backend::Mpi),
            Some(Backend::Nccl),
        ]);
        let hosts = (1_usize..5).prop_flat_map(|world| {
            let ips = prop::collection::vec(any::<IpAddr>(), 0..3);
            let rows = prop::option::of(prop::collection::vec(devices(), world));
            prop::collection::vec(("\\PC{1,8}x", ips, rows), world)
        });
        let envs = prop::collection::vec("[A-Z_]{1,5}=\\PC{0,5}", 0..3);
        (backend, envs, hosts).prop_map(|(backend, envs, hosts)| {
            let host = |(own, (ssh, ips, row)): (usize, (String, Vec<IpAddr>, Option<Vec<_>>))| {
                let mut rdma = row.unwrap_or_default();
                if let Some(cell) = rdma.get_mut(own) {
                    *cell = Devices::default();
                }
                Host { ssh, ips, rdma }
            };
            Hostfile {
                backend,
                envs,
                hosts: hosts.into_iter().enumerate().map(host).collect(),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(hostfile in hostfiles()) {
            let text = hostfile.to_text();
            prop_assert_eq!(Hostfile::parse(&text).unwrap(), hostfile);
        }

        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,80}") {
            let _any_answer_will_do = Hostfile::parse(&text);
        }
    }
}
