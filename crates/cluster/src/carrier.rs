//! What shall carry bytes between two machines.

use serde::{Deserialize, Serialize};
use shoal_fabric::tcp::{Config, Rdma};

/// What shall carry bytes between ranks. Where that is not possible there is no group, and the error says why. It holds for
/// the lanes of a copy as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// What carries them in a cell: the best that two ranks find, unless the machine's owner allows less.
    #[default]
    Auto,
    /// TCP, also where two ranks share memory.
    Tcp,
    /// Memory that two ranks share, and nothing else.
    SharedMemory,
    /// RDMA devices, and nothing else.
    Rdma,
}

impl Carrier {
    /// Returns how the group has to be formed, where it is `usual`ly formed like that.
    pub(crate) fn config(self, usual: &Config) -> Config {
        let alone = |shared_memory, rdma, tcp| Config {
            shared_memory,
            rdma,
            tcp,
            interfaces: usual.interfaces.clone(),
        };
        match self {
            Self::Auto => usual.clone(),
            Self::Tcp => alone(false, Rdma::Off, true),
            Self::SharedMemory => alone(true, Rdma::Off, false),
            Self::Rdma => alone(false, Rdma::Auto, false),
        }
    }
}
