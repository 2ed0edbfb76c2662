//! Which RDMA devices lead from each rank to each other.

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The local devices that lead to one rank, cable by cable: none, one, or several side by side. The k-th on both sides
/// is the same cable. In JSON `null`, a name, or a list of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(Vec<String>);

/// The devices of every rank to every other: row by row, rank by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix(Vec<Vec<Devices>>);

/// The devices of a hostfile do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A row is too short or too long.
    #[error(
        "the \"rdma\" row of {host} has length {listed}, and there are {hosts} hosts; give one cell for each host, in \
         their order, null for the host itself"
    )]
    Count {
        /// Whose row it is.
        host: String,
        /// Cells of the row.
        listed: usize,
        /// Hosts there are.
        hosts: usize,
    },
    /// A host with a device to itself.
    #[error(
        "{host} lists an RDMA device ({device}) to itself; its own cell, number {rank} of \"rdma\", has to be null"
    )]
    OwnCell {
        /// Whose row it is.
        host: String,
        /// What stands there.
        device: String,
        /// Its rank.
        rank: usize,
    },
    /// Two hosts without a device between them.
    #[error(
        "no RDMA device listed for {from} to {to}{}; add it to \"rdma\", or let `shoal fabric discover` write the file",
        and_more(*more)
    )]
    Missing {
        /// Who lacks the device.
        from: String,
        /// To reach whom.
        to: String,
        /// How many other cells are missing.
        more: usize,
    },
    /// The two ends disagree on the number of cables.
    #[error(
        "{from} lists {there} RDMA devices to {to}, which lists {back} back; each cable has one device at each of its ends"
    )]
    Unequal {
        /// One end.
        from: String,
        /// The other.
        to: String,
        /// Devices of the one.
        there: usize,
        /// Devices of the other.
        back: usize,
    },
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    }
}

impl Devices {
    /// Returns their names, cable by cable.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether nothing leads there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Devices {
    fn from(names: [S; N]) -> Self {
        names.into_iter().collect()
    }
}

impl<S: Into<String>> FromIterator<S> for Devices {
    fn from_iter<T: IntoIterator<Item = S>>(names: T) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

impl Matrix {
    /// Makes a matrix of rows; `names` are the hosts in the order of their ranks, for messages.
    ///
    /// # Errors
    /// [`MatrixError::Count`] or [`MatrixError::OwnCell`].
    pub fn new(rows: Vec<Vec<Devices>>, names: &[&str]) -> Result<Self, MatrixError> {
        let hosts = rows.len();
        for (rank, row) in rows.iter().enumerate() {
            if row.len() != hosts {
                return Err(MatrixError::Count {
                    host: name(names, rank),
                    listed: row.len(),
                    hosts,
                });
            }
            if let Some(device) = row[rank].0.first() {
                return Err(MatrixError::OwnCell {
                    host: name(names, rank),
                    device: device.clone(),
                    rank,
                });
            }
        }
        Ok(Self(rows))
    }

    /// Returns the number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.0.len()
    }

    /// Returns the devices of `from` that lead to `to`; none for ranks that are not in it.
    #[must_use]
    pub fn devices(&self, from: usize, to: usize) -> &[String] {
        self.0
            .get(from)
            .and_then(|row| row.get(to))
            .map_or(&[], Devices::names)
    }

    /// Checks that every rank has devices to every other.
    ///
    /// # Errors
    /// [`MatrixError::Missing`] or [`MatrixError::Unequal`].
    pub fn check_mesh(&self, names: &[&str]) -> Result<(), MatrixError> {
        let world = self.world();
        let all = (0..world).flat_map(|from| (0..world).map(move |to| (from, to)));
        self.check(all.filter(|(from, to)| from != to), names)
    }

    /// Checks that every rank has devices to the one before and the one behind it.
    ///
    /// # Errors
    /// [`MatrixError::Missing`] or [`MatrixError::Unequal`].
    pub fn check_ring(&self, names: &[&str]) -> Result<(), MatrixError> {
        let world = self.world();
        let neighbours = |from: usize| {
            let (behind, before) = ((from + 1) % world, (from + world - 1) % world);
            let both = [before, behind].into_iter().take(world.min(3) - 1);
            both.map(move |to| (from, to))
        };
        self.check((0..world).flat_map(neighbours), names)
    }

    fn check(
        &self,
        pairs: impl Iterator<Item = (usize, usize)>,
        names: &[&str],
    ) -> Result<(), MatrixError> {
        let pairs: Vec<_> = pairs.collect();
        let mut missing = pairs
            .iter()
            .filter(|(from, to)| self.devices(*from, *to).is_empty());
        if let Some((from, to)) = missing.next() {
            return Err(MatrixError::Missing {
                from: name(names, *from),
                to: name(names, *to),
                more: missing.count(),
            });
        }
        for (from, to) in pairs {
            let (there, back) = (self.devices(from, to).len(), self.devices(to, from).len());
            if there != back {
                return Err(MatrixError::Unequal {
                    from: name(names, from),
                    to: name(names, to),
                    there,
                    back,
                });
            }
        }
        Ok(())
    }
}

fn name(names: &[&str], rank: usize) -> String {
    names
        .get(rank)
        .map_or_else(|| format!("rank {rank}"), |name| (*name).to_owned())
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [] => serializer.serialize_none(),
            [one] => serializer.serialize_str(one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Cell)
    }
}

struct Cell;

impl<'de> Visitor<'de> for Cell {
    type Value = Devices;

    fn expecting(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        text.write_str("null, a name or a list of names")
    }

    fn visit_unit<E>(self) -> Result<Devices, E> {
        Ok(Devices::default())
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Devices, E> {
        match name {
            "" => Err(E::custom(
                "an RDMA device with an empty name; write null for none",
            )),
            name => Ok(Devices::from([name])),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Devices, A::Error> {
        let mut devices = Vec::new();
        while devices.len() < CABLES_MAX {
            match names.next_element::<String>()? {
                Some(name) if name.is_empty() => {
                    return Err(A::Error::custom("an RDMA device with an empty name"));
                }
                Some(name) => devices.push(name),
                None => return Ok(Devices(devices)),
            }
        }
        match names.next_element::<IgnoredAny>()? {
            None => Ok(Devices(devices)),
            Some(_) => Err(A::Error::custom(format!(
                "more than {CABLES_MAX} devices to one host"
            ))),
        }
    }
}

/// No machine has more ports.
const CABLES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn matrix(text: &str) -> Result<Matrix, MatrixError> {
        Matrix::new(serde_json::from_str(text).unwrap(), &NAMES)
    }

    #[test]
    fn rows_have_a_cell_for_each_host_and_none_for_their_own() {
        assert_eq!(
            matrix(r#"[[null, "x"], ["x"]]"#).unwrap_err().to_string(),
            "the \"rdma\" row of b has length 1, and there are 2 hosts; give one cell for each host, in their order, \
             null for the host itself"
        );
        assert_eq!(
            matrix(r#"[[null, "x"], ["x", ["y", "z"]]]"#)
                .unwrap_err()
                .to_string(),
            "b lists an RDMA device (y) to itself; its own cell, number 1 of \"rdma\", has to be null"
        );
    }

    #[test]
    fn a_mesh_wants_every_pair() {
        let complete = matrix(r#"[[null, "x"], [["x"], null]]"#).unwrap();
        complete.check_mesh(&NAMES).unwrap();
        let half = matrix(r#"[[null, "x", null], ["x", null, "x"], [null, "x", null]]"#).unwrap();
        assert_eq!(
            half.check_mesh(&NAMES).unwrap_err().to_string(),
            "no RDMA device listed for a to c (and 1 more); add it to \"rdma\", or let `shoal fabric discover` write the file"
        );
        let one = matrix(r#"[[null, "x"], [null, null]]"#).unwrap();
        assert_eq!(
            one.check_mesh(&[]).unwrap_err().to_string(),
            "no RDMA device listed for rank 1 to rank 0; add it to \"rdma\", or let `shoal fabric discover` write the file"
        );
    }

    #[test]
    fn a_ring_wants_neighbours_only() {
        let ring = r#"[[null, "p", null, "q"], ["p", null, "q", null], [null, "q", null, "p"], ["q", null, "p", null]]"#;
        let ring = matrix(ring).unwrap();
        ring.check_ring(&NAMES).unwrap();
        assert!(ring.check_mesh(&NAMES).is_err());
        for (text, more) in [
            ("[[null]]", None),
            ("[[null, null], [null, null]]", Some(1)),
            (
                r#"[[null, "p", "p"], ["p", null, null], ["p", null, null]]"#,
                Some(1),
            ),
        ] {
            let missing = match matrix(text).unwrap().check_ring(&NAMES) {
                Err(MatrixError::Missing { more, .. }) => Some(more),
                _ => None,
            };
            assert_eq!(missing, more, "{text}");
        }
    }

    #[test]
    fn both_ends_of_a_link_have_the_same_cables() {
        let uneven = matrix(r#"[[null, ["x", "y"]], ["x", null]]"#).unwrap();
        assert_eq!(
            uneven.check_mesh(&NAMES).unwrap_err().to_string(),
            "a lists 2 RDMA devices to b, which lists 1 back; each cable has one device at each of its ends"
        );
    }

    #[test]
    fn cells_have_names_and_a_bound() {
        for text in [r#""""#, r#"["x", ""]"#, "{}", "[[]]"] {
            assert!(serde_json::from_str::<Devices>(text).is_err(), "{text}");
        }
        let many = serde_json::to_string(&vec!["x"; CABLES_MAX + 1]).unwrap();
        let error = serde_json::from_str::<Devices>(&many).unwrap_err();
        assert!(error.to_string().contains("more than 16 devices"));
        let full: Devices = vec!["x"; CABLES_MAX].into_iter().collect();
        let text = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<Devices>(&text).unwrap(), full);
    }
}
