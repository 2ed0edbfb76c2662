//! What may carry the bytes between ranks.

use std::str::FromStr;

use crate::error::FabricError;
use crate::interfaces::Interfaces;

/// How the ranks of a group are linked, as far as that can be chosen: the first that two ranks both want and have.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether two ranks that turn out to be on one machine exchange their bytes through memory, which is quicker than
    /// their TCP connection. Both have to agree to it.
    pub shared_memory: bool,
    /// Whether two ranks whose machines have RDMA devices exchange their bytes through those. Both have to agree to it.
    pub rdma: Rdma,
    /// Whether the bytes may take TCP connections where nothing else carries them. If not, there is no group then.
    pub tcp: bool,
    /// Over which interfaces they may go then; those of the other end have to allow it as well.
    pub interfaces: Interfaces,
}

/// Whether and how RDMA devices are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rdma {
    /// Not at all.
    Off,
    /// With reliable connections, or with unreliable ones where the devices have no others.
    #[default]
    Auto,
    /// With unreliable connections, which are all that Thunderbolt has; any other device can be tested with them.
    Unreliable,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shared_memory: true,
            rdma: Rdma::Auto,
            tcp: true,
            interfaces: Interfaces::USUAL,
        }
    }
}

impl FromStr for Config {
    type Err = FabricError;

    /// Reads `auto`, or what may carry the bytes, with commas: `shared-memory`, `rdma` or `rdma-unreliable`, `tcp`.
    fn from_str(names: &str) -> Result<Self, FabricError> {
        if names == "auto" {
            return Ok(Self::default());
        }
        let mut config = Self {
            shared_memory: false,
            rdma: Rdma::Off,
            tcp: false,
            interfaces: Interfaces::USUAL,
        };
        for name in names.split(',') {
            match name {
                "shared-memory" | "shm" => config.shared_memory = true,
                "rdma" => config.rdma = Rdma::Auto,
                "rdma-unreliable" => config.rdma = Rdma::Unreliable,
                "tcp" => config.tcp = true,
                _ => {
                    return Err(FabricError::Invalid(format!(
                        "`{name}` is no transport; there are auto, or some of shared-memory, rdma, rdma-unreliable \
                         and tcp with commas between them"
                    )));
                }
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &str, expected: Option<(bool, Rdma, bool)>) {
        let found = names.parse::<Config>().ok();
        let found = found.map(|config| (config.shared_memory, config.rdma, config.tcp));
        assert_eq!(found, expected, "{names}");
    }

    #[test]
    fn transports_are_read_by_name() {
        check("auto", Some((true, Rdma::Auto, true)));
        check("tcp", Some((false, Rdma::Off, true)));
        check("shm", Some((true, Rdma::Off, false)));
        check("rdma", Some((false, Rdma::Auto, false)));
        check("rdma-unreliable,tcp", Some((false, Rdma::Unreliable, true)));
        check("shared-memory,rdma,tcp", Some((true, Rdma::Auto, true)));
        for wrong in ["", "tcp,", "infiniband", "auto,tcp"] {
            check(wrong, None);
        }
    }
}
