//! What `mlx.launch` puts into the environment of each rank.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::matrix::{Devices, Matrix, MatrixError};

/// The environment says half of what a rank needs. Whoever started the process can fix it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// A variable is missing that belongs to one that is there.
    #[error(
        "{present} is set and {missing} is not; start every rank by mlx.launch, or unset {present}"
    )]
    Missing {
        /// What is set.
        present: &'static str,
        /// What belongs to it.
        missing: &'static str,
    },
    /// Two ways to link the ranks.
    #[error(
        "{one} and {other} are both set; unset one of them: the first is for RDMA, the second for TCP"
    )]
    Both {
        /// One of the two.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A value that cannot be used.
    #[error("{variable} is `{value}`; it has to be {wanted}")]
    Value {
        /// Which variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
    /// A file that a variable names is out of reach.
    #[error("cannot read {}, which {variable} names: {source}", path.display())]
    Read {
        /// Which variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that a variable names holds something else.
    #[error("{}, which {variable} names, is not understood ({source}); it has to be JSON: {wanted}", path.display())]
    Format {
        /// Which variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
        /// What it has to be.
        wanted: &'static str,
    },
    /// The devices do not fit together.
    #[error("{variable}: {source}")]
    Matrix {
        /// Which variable.
        variable: &'static str,
        /// What is wrong.
        source: MatrixError,
    },
    /// A rank that is not one of the group.
    #[error("{variable} is {rank}, and {file} lists {world} ranks; the first of them is 0")]
    Rank {
        /// Where the rank comes from.
        variable: &'static str,
        /// The rank.
        rank: u16,
        /// What lists the group.
        file: &'static str,
        /// Its size.
        world: usize,
    },
}

/// A variable that has two names; the first wins.
type Names = [&'static str; 2];

/// A variable that is set: its name, and what it holds.
type Set = (&'static str, String);

/// Reads what a rank is told through `lookup`, which returns the value of a variable, and says it in words: `rank 1 of 2, a
/// ring over TCP`; `None` for a process that `mlx.launch` did not start.
///
/// # Errors
/// [`EnvironmentError`] when it is told something that cannot be used.
pub fn launched(
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, EnvironmentError> {
    let find = |names: &[&'static str]| -> Option<Set> {
        let values = names.iter().map(|name| (*name, lookup(name)));
        values
            .filter_map(|(name, value)| Some((name, value.filter(|it| !it.is_empty())?)))
            .next()
    };
    let rank = find(&RANK);
    let devices = find(&DEVICES);
    let addresses = find(&[HOSTFILE]);
    let Some((variable, value)) = rank else {
        let present = devices.or(addresses);
        return match present {
            None => Ok(None),
            Some((present, _)) => Err(EnvironmentError::Missing {
                present,
                missing: RANK[1],
            }),
        };
    };
    let rank: u16 = value.parse().map_err(|_| EnvironmentError::Value {
        variable,
        value,
        wanted: "a number from 0 to 65535",
    })?;
    let (links, world, file) = match (devices, addresses) {
        (Some((one, _)), Some((other, _))) => {
            return Err(EnvironmentError::Both { one, other });
        }
        (None, None) => {
            return Err(EnvironmentError::Missing {
                present: variable,
                missing: HOSTFILE,
            });
        }
        (None, Some(set)) => {
            // One host has no neighbour to connect it: its list is empty, and its group a rank.
            let world = ring(&set)?.len().max(1);
            ("a ring over TCP".to_owned(), world, set.0)
        }
        (Some(set), None) => {
            let devices = matrix(&set)?;
            let world = devices.world();
            let (coordinator, ring) = (find(&COORDINATOR), find(&RING));
            (jaccl(&set, &devices, coordinator, ring)?, world, set.0)
        }
    };
    if usize::from(rank) >= world {
        return Err(EnvironmentError::Rank {
            variable,
            rank,
            file,
            world,
        });
    }
    Ok(Some(format!("rank {rank} of {world}, {links}")))
}

fn ring((variable, path): &Set) -> Result<Vec<Vec<SocketAddr>>, EnvironmentError> {
    const WANTED: &str = "for each rank a list of \"IP:PORT\"";
    read(variable, Path::new(path), WANTED, "[]")
}

fn matrix((variable, path): &Set) -> Result<Matrix, EnvironmentError> {
    const WANTED: &str =
        "for each rank a list with null, a device or a list of devices for each rank";
    let rows: Vec<Vec<Devices>> = read(variable, Path::new(path), WANTED, "")?;
    Matrix::new(rows, &[]).map_err(|source| EnvironmentError::Matrix { variable, source })
}

fn jaccl(
    (present, _): &Set,
    devices: &Matrix,
    coordinator: Option<Set>,
    ring: Option<Set>,
) -> Result<String, EnvironmentError> {
    let Some((variable, value)) = coordinator else {
        return Err(EnvironmentError::Missing {
            present,
            missing: COORDINATOR[1],
        });
    };
    let coordinator: SocketAddr = value.parse().map_err(|_| EnvironmentError::Value {
        variable,
        value,
        wanted: "IP:PORT, where rank 0 listens",
    })?;
    let ring = match ring {
        None => false,
        Some((variable, value)) => match value.as_str() {
            "0" => false,
            "1" => true,
            _ => {
                return Err(EnvironmentError::Value {
                    variable,
                    value,
                    wanted: "0 or 1",
                });
            }
        },
    };
    let complete = match ring {
        true => devices.check_ring(&[]),
        // Without a full mesh a ring is what is left.
        false => devices
            .check_mesh(&[])
            .or_else(|missing| devices.check_ring(&[]).map_err(|_| missing)),
    };
    let variable = *present;
    complete.map_err(|source| EnvironmentError::Matrix { variable, source })?;
    let shape = if ring { "a ring of RDMA" } else { "RDMA" };
    Ok(format!("{shape}, coordinator {coordinator}"))
}

/// Reads a file of JSON; one without content stands for `empty`.
fn read<T: DeserializeOwned>(
    variable: &'static str,
    path: &Path,
    wanted: &'static str,
    empty: &str,
) -> Result<T, EnvironmentError> {
    let text = fs::read_to_string(path).map_err(|source| EnvironmentError::Read {
        variable,
        path: path.to_owned(),
        source,
    })?;
    let text = match text.trim() {
        "" => empty,
        text => text,
    };
    serde_json::from_str(text).map_err(|source| EnvironmentError::Format {
        variable,
        path: path.to_owned(),
        source,
        wanted,
    })
}

const RANK: Names = ["JACCL_RANK", "MLX_RANK"];
const DEVICES: Names = ["JACCL_IBV_DEVICES", "MLX_IBV_DEVICES"];
const COORDINATOR: Names = ["JACCL_COORDINATOR", "MLX_JACCL_COORDINATOR"];
const RING: Names = ["JACCL_RING", "MLX_JACCL_RING"];
const HOSTFILE: &str = "MLX_HOSTFILE";

#[cfg(test)]
mod tests {
    use super::*;

    /// The variables, and a file for those whose value begins with JSON.
    fn launched(variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let value = |name: &str| {
            let (_, value) = variables.iter().find(|(it, _)| *it == name)?;
            if !["[[", "[]", " "].iter().any(|it| value.starts_with(it)) {
                return Some((*value).to_owned());
            }
            let path = folder.path().join(name);
            fs::write(&path, value).unwrap();
            Some(path.display().to_string())
        };
        let found = super::launched(value);
        let path = format!("{}/", folder.path().display());
        found.map_err(|error| error.to_string().replace(&path, ""))
    }

    fn described(variables: &[(&str, &str)]) -> String {
        launched(variables).unwrap().unwrap()
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        launched(variables).unwrap_err()
    }

    const PAIR: &str = r#"[[null, "rdma_en2"], ["rdma_en3", null]]"#;
    const RING_OF_4: &str = r#"[[null, "a", null, "b"], ["a", null, "b", null], [null, "a", null, "b"], ["a", null, "b", null]]"#;

    #[test]
    fn an_ordinary_process_is_no_rank() {
        assert_eq!(launched(&[]), Ok(None));
        assert_eq!(
            launched(&[("MLX_RANK", ""), ("MLX_JACCL_RING", "1")]),
            Ok(None)
        );
    }

    #[test]
    fn a_ring_is_described() {
        let hostfile = r#"[["10.0.0.1:32323", "10.0.1.1:32324"], ["10.0.0.2:32325"]]"#;
        assert_eq!(
            described(&[("MLX_RANK", "1"), ("MLX_HOSTFILE", hostfile)]),
            "rank 1 of 2, a ring over TCP"
        );
        assert_eq!(
            described(&[("MLX_RANK", "0"), ("MLX_HOSTFILE", " ")]),
            "rank 0 of 1, a ring over TCP"
        );
    }

    #[test]
    fn rdma_is_described() {
        let found = described(&[
            ("MLX_RANK", "0"),
            ("MLX_IBV_DEVICES", PAIR),
            ("MLX_JACCL_COORDINATOR", "10.0.0.1:32323"),
            ("MLX_JACCL_RING", "1"),
        ]);
        assert_eq!(
            found,
            "rank 0 of 2, a ring of RDMA, coordinator 10.0.0.1:32323"
        );
    }

    #[test]
    fn the_names_of_the_library_win() {
        let found = described(&[
            ("MLX_RANK", "7"),
            ("JACCL_RANK", "1"),
            ("MLX_IBV_DEVICES", "/nowhere"),
            ("JACCL_IBV_DEVICES", PAIR),
            ("MLX_JACCL_COORDINATOR", "nowhere"),
            ("JACCL_COORDINATOR", "[::1]:1"),
            ("MLX_JACCL_RING", "1"),
            ("JACCL_RING", "0"),
        ]);
        assert_eq!(found, "rank 1 of 2, RDMA, coordinator [::1]:1");
    }

    #[test]
    fn four_in_a_ring_need_no_mesh() {
        let variables = [
            ("MLX_RANK", "3"),
            ("MLX_IBV_DEVICES", RING_OF_4),
            ("MLX_JACCL_COORDINATOR", "10.0.0.1:1"),
        ];
        assert_eq!(
            described(&variables),
            "rank 3 of 4, RDMA, coordinator 10.0.0.1:1"
        );
    }

    #[test]
    fn half_an_environment_is_told() {
        let rank = ("MLX_RANK", "0");
        for (variables, message) in [
            (
                &[("MLX_IBV_DEVICES", PAIR)][..],
                "MLX_IBV_DEVICES is set and MLX_RANK is not; start every rank by mlx.launch, or unset MLX_IBV_DEVICES",
            ),
            (
                &[rank],
                "MLX_RANK is set and MLX_HOSTFILE is not; start every rank by mlx.launch, or unset MLX_RANK",
            ),
            (
                &[rank, ("MLX_IBV_DEVICES", PAIR)],
                "MLX_IBV_DEVICES is set and MLX_JACCL_COORDINATOR is not; start every rank by mlx.launch, or unset \
                 MLX_IBV_DEVICES",
            ),
            (
                &[rank, ("MLX_IBV_DEVICES", PAIR), ("MLX_HOSTFILE", "[]")],
                "MLX_IBV_DEVICES and MLX_HOSTFILE are both set; unset one of them: the first is for RDMA, the second for TCP",
            ),
            (
                &[("MLX_RANK", "-1"), ("MLX_HOSTFILE", "[]")],
                "MLX_RANK is `-1`; it has to be a number from 0 to 65535",
            ),
            (
                &[
                    ("MLX_RANK", "2"),
                    ("MLX_HOSTFILE", r#"[["1.2.3.4:5"], ["1.2.3.4:6"]]"#),
                ],
                "MLX_RANK is 2, and MLX_HOSTFILE lists 2 ranks; the first of them is 0",
            ),
            (
                &[
                    rank,
                    ("MLX_IBV_DEVICES", PAIR),
                    ("MLX_JACCL_COORDINATOR", "mac1:1"),
                ],
                "MLX_JACCL_COORDINATOR is `mac1:1`; it has to be IP:PORT, where rank 0 listens",
            ),
            (
                &[
                    rank,
                    ("MLX_IBV_DEVICES", PAIR),
                    ("JACCL_COORDINATOR", "1.2.3.4:5"),
                    ("JACCL_RING", "yes"),
                ],
                "JACCL_RING is `yes`; it has to be 0 or 1",
            ),
            (
                &[
                    rank,
                    ("MLX_IBV_DEVICES", r#"[[null, "a"], [null, null]]"#),
                    ("JACCL_COORDINATOR", "1.2.3.4:5"),
                ],
                "MLX_IBV_DEVICES: no RDMA device listed for rank 1 to rank 0; add it to \"rdma\", or let `shoal fabric \
                 discover` write the file",
            ),
            (
                &[rank, ("MLX_HOSTFILE", r#"[["mac1:1"]]"#)],
                "MLX_HOSTFILE, which MLX_HOSTFILE names, is not understood (invalid socket address syntax at line 1 column \
                 10); it has to be JSON: for each rank a list of \"IP:PORT\"",
            ),
        ] {
            assert_eq!(refused(variables), message);
        }
        let gone = refused(&[rank, ("MLX_HOSTFILE", "/nowhere/hosts")]);
        assert!(gone.starts_with("cannot read /nowhere/hosts, which MLX_HOSTFILE names: "));
    }
}
