//! The addresses that this machine has, as its system tells them.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// One address of an interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) interface: String,
    pub(crate) ip: IpAddr,
    /// How many leading bits of it are those of its network.
    pub(crate) prefix: u8,
    pub(crate) is_loopback: bool,
    pub(crate) is_tunnel: bool,
    /// What the interface and the other end of its cable have agreed on; 0 where the system does not say.
    pub(crate) speed_mbps: u32,
}

/// Returns the addresses of all interfaces that are up and see the other end of their cable.
pub(crate) fn of_this_machine() -> io::Result<Vec<Address>> {
    let mut first = ptr::null_mut();
    // SAFETY: the call writes the start of a list to where it is told, and touches nothing else.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let list = List(first);
    let mut addresses = Vec::new();
    let mut at: *const libc::ifaddrs = list.0;
    // SAFETY: each entry is null, the end, or valid for as long as the list is not freed.
    while let Some(entry) = unsafe { at.as_ref() } {
        // SAFETY: it is an entry of such a list.
        addresses.extend(unsafe { address(entry) });
        at = entry.ifa_next;
    }
    Ok(addresses)
}

/// A list that the system has made; it is freed with this.
struct List(*mut libc::ifaddrs);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: it came from `getifaddrs`, and nothing refers to it any more.
        unsafe { libc::freeifaddrs(self.0) }
    }
}

/// Returns what an entry says, if that is an address of an interface in use.
///
/// # Safety
/// - `entry` is one of a list of `getifaddrs` that has not been freed.
unsafe fn address(entry: &libc::ifaddrs) -> Option<Address> {
    let has = |flag: libc::c_int| entry.ifa_flags & flag as libc::c_uint != 0;
    if !has(libc::IFF_UP) || !has(libc::IFF_RUNNING) || entry.ifa_addr.is_null() {
        return None;
    }
    // SAFETY: an entry without an address has null there, any other an address, which begins like this.
    let family = i32::from(unsafe { (*entry.ifa_addr).sa_family });
    // SAFETY: both are null or whole, and a mask is of the family of its address.
    let (ip, mask) = unsafe { (ip(entry.ifa_addr, family)?, ip(entry.ifa_netmask, family)) };
    let prefix = match mask? {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    // SAFETY: every entry has the name of its interface.
    let name = unsafe { CStr::from_ptr(entry.ifa_name) };
    let interface = name.to_str().ok()?.to_owned();
    Some(Address {
        speed_mbps: speed_mbps(&interface),
        interface,
        ip,
        prefix: u8::try_from(prefix).ok()?,
        is_loopback: has(libc::IFF_LOOPBACK),
        is_tunnel: has(libc::IFF_POINTOPOINT),
    })
}

/// Reads an address of `family`; none of a family without IP addresses.
///
/// # Safety
/// - `address` is null or points at as many bytes as it says, or as its family has.
unsafe fn ip(address: *const libc::sockaddr, family: i32) -> Option<IpAddr> {
    let whole_len = match family {
        libc::AF_INET => size_of::<libc::sockaddr_in>(),
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => return None,
    };
    if address.is_null() {
        return None;
    }
    // SAFETY: it is not null, so it points at an address.
    let len = unsafe { len(address, whole_len) };
    let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
    // SAFETY: it has `len` bytes, and there is room for those of the longer kind.
    unsafe { ptr::copy_nonoverlapping(address.cast(), bytes.as_mut_ptr(), len) };
    Some(match family {
        libc::AF_INET => {
            let ip: &[u8; 4] = bytes[offset_of!(libc::sockaddr_in, sin_addr)..].first_chunk()?;
            Ipv4Addr::from(*ip).into()
        }
        _ => {
            let ip: &[u8; 16] = bytes[offset_of!(libc::sockaddr_in6, sin6_addr)..].first_chunk()?;
            Ipv6Addr::from(*ip).into()
        }
    })
}

/// Returns how many bytes an address has. Masks may be cut short on a Mac, behind their last byte that is not zero.
///
/// # Safety
/// - `address` points at an address.
#[cfg(target_vendor = "apple")]
unsafe fn len(address: *const libc::sockaddr, whole_len: usize) -> usize {
    // SAFETY: every address begins with its length.
    usize::from(unsafe { (*address).sa_len }).min(whole_len)
}

/// Returns how many bytes an address has.
///
/// # Safety
/// None: on other systems they are all whole.
#[cfg(not(target_vendor = "apple"))]
unsafe fn len(_address: *const libc::sockaddr, whole_len: usize) -> usize {
    whole_len
}

/// Asks Linux; others have no such file, and a device that does not know says -1.
fn speed_mbps(interface: &str) -> u32 {
    let path = format!("/sys/class/net/{interface}/speed");
    let speed = fs::read_to_string(path).ok();
    speed
        .and_then(|speed| speed.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_with_its_network() {
        let all = of_this_machine().expect("the system tells");
        let own = all
            .iter()
            .find(|address| address.ip == Ipv4Addr::LOCALHOST)
            .expect("loopback is up");
        assert!(own.is_loopback && own.interface.starts_with("lo"));
        assert_eq!((own.prefix, own.speed_mbps), (8, 0));
    }
}
