//! Where an address in words leads.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Returns what `HOST:PORT` stands for, in the order in which it should be tried. An IPv6 address stands in brackets, one of a
/// link with its zone: `[fe80::1%en5]:7070`.
///
/// # Errors
/// When nothing has that name, or it is none.
pub fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    // The standard library reads zones that are numbers only, and asks the system for a host with brackets in its name.
    let in_brackets = address
        .strip_prefix('[')
        .and_then(|it| it.rsplit_once("]:"));
    if let Some((host, port)) = in_brackets
        && let Ok(port) = port.parse::<u16>()
    {
        return Ok((host, port).to_socket_addrs()?.collect());
    }
    Ok(address.to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_their_zones() {
        let first = |address| resolve(address).expect(address)[0];
        assert_eq!(first("127.0.0.1:7"), "127.0.0.1:7".parse().expect("one"));
        assert_eq!(first("[::1]:7"), "[::1]:7".parse().expect("one"));
        assert_eq!(
            first("[fe80::1%1]:7"),
            "[fe80::1%1]:7".parse().expect("one")
        );
        if cfg!(target_os = "linux") {
            assert_eq!(
                first("[fe80::1%lo]:7"),
                "[fe80::1%1]:7".parse().expect("one")
            );
        }
        for wrong in [
            "",
            "127.0.0.1",
            "[::1]",
            "[::1]:",
            "[::1]:65536",
            "[fe80::1%none.such]:7",
        ] {
            assert!(resolve(wrong).is_err(), "{wrong}");
        }
    }
}
