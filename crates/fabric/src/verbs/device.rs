//! RDMA devices of this machine.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use super::abi;
use super::library::{Verbs, check, made};
use crate::addresses;

/// An open device whose port is up.
pub(crate) struct Device {
    pub(crate) verbs: Arc<Verbs>,
    context: NonNull<abi::Context>,
    /// As the system calls it.
    pub(crate) name: String,
    pub(crate) addresses: Vec<Address>,
    /// Largest packet, as the library counts them.
    pub(crate) mtu: u32,
    pub(crate) lid: u16,
    /// 0 if it is not known.
    pub(crate) speed_mbps: u32,
    queue_pairs: AtomicUsize,
}

/// One entry of a device's table of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) ip: Ipv4Addr,
    /// How many leading bits of it are those of its network; all where the system does not tell.
    pub(crate) prefix: u8,
    /// Its place in the table.
    pub(crate) index: u8,
}

// SAFETY: verbs may be called from any thread; the pointer is not used for anything else.
unsafe impl Send for Device {}
// SAFETY: as above, and they lock what they share.
unsafe impl Sync for Device {}

impl Device {
    /// Opens every device of this machine that can be used.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn all() -> Result<Vec<Arc<Self>>, String> {
        let verbs = Arc::new(Verbs::load()?);
        let list =
            List::new(&verbs).map_err(|error| format!("devices cannot be listed ({error})"))?;
        let networks = addresses::of_this_machine().unwrap_or_else(|error| {
            warn!(%error, "this machine does not tell its networks: one device for each link");
            Vec::new()
        });
        let (mut devices, mut reasons) = (Vec::new(), Vec::new());
        for device in list.devices() {
            match Self::open(&verbs, *device, &networks) {
                Ok(device) => devices.push(Arc::new(device)),
                Err(reason) => reasons.push(reason),
            }
        }
        if !devices.is_empty() {
            Ok(devices)
        } else if reasons.is_empty() {
            Err("this machine has no RDMA device".to_owned())
        } else {
            Err(reasons.join(", "))
        }
    }

    fn open(
        verbs: &Arc<Verbs>,
        device: *mut abi::Device,
        networks: &[addresses::Address],
    ) -> Result<Self, String> {
        // SAFETY: `device` is of a list that still exists; the name is part of it and ends in a zero.
        let name = unsafe { CStr::from_ptr((verbs.get_device_name)(device)) };
        let name = name.to_string_lossy().into_owned();
        // SAFETY: as above.
        let context = made(unsafe { (verbs.open_device)(device) })
            .map_err(|error| format!("{name} cannot be opened ({error})"))?;
        let mut device = Self {
            verbs: Arc::clone(verbs),
            context,
            name,
            addresses: Vec::new(),
            mtu: abi::MTU_256,
            lid: 0,
            speed_mbps: 0,
            queue_pairs: AtomicUsize::new(0),
        };
        let port = device
            .port()
            .map_err(|error| format!("port {PORT} of {} cannot be asked ({error})", device.name))?;
        // Before anything else: on a port that is down, even what seems to succeed cannot be used.
        if port.state != abi::PORT_ACTIVE {
            return Err(format!("port {} on {}", state(port.state), device.name));
        }
        (device.mtu, device.lid) = (port.active_mtu, port.lid);
        device.speed_mbps = speed_mbps(port.active_width, port.active_speed);
        let count = u8::try_from(port.gid_tbl_len).unwrap_or(u8::MAX);
        for index in 0..count {
            let Some(ip) = device.ip(index) else {
                continue;
            };
            let network = networks.iter().find(|network| network.ip == ip);
            let prefix = network.map_or(32, |network| network.prefix);
            let address = Address { ip, prefix, index };
            // Linux lists an address once for each version of RoCE, the later one behind, which routers forward and every
            // device of today has.
            device.addresses.retain(|earlier| earlier.ip != address.ip);
            device.addresses.push(address);
        }
        if device.addresses.is_empty() {
            return Err(format!("{} has no IPv4 address", device.name));
        }
        Ok(device)
    }

    /// Says why nothing goes through the port any more, if so.
    pub(crate) fn port_is_lost(&self) -> Option<String> {
        match self.port() {
            Ok(port) if port.state == abi::PORT_DOWN => Some("port DOWN".to_owned()),
            Ok(_) => None,
            Err(error) => Some(format!("port {PORT} cannot be asked ({error})")),
        }
    }

    fn port(&self) -> io::Result<abi::PortAttr> {
        let mut port = abi::PortAttr::default();
        // SAFETY: the device is open, and `port` is at least as large as what is filled in.
        check(unsafe { (self.verbs.query_port)(self.context(), PORT, &raw mut port) })?;
        Ok(port)
    }

    /// Returns the address in an entry of the table, if that is one of IPv4.
    fn ip(&self, index: u8) -> Option<Ipv4Addr> {
        let mut gid = abi::Gid::default();
        // SAFETY: the device is open, and `gid` is what is filled in.
        check(unsafe { (self.verbs.query_gid)(self.context(), PORT, index.into(), &raw mut gid) })
            .ok()?;
        std::net::Ipv6Addr::from(gid.0).to_ipv4_mapped()
    }

    /// Takes one of the few queue pairs that a device has.
    ///
    /// # Errors
    /// When all are taken.
    pub(crate) fn take_queue_pair(&self) -> Result<(), String> {
        let take = |taken| (taken < QUEUE_PAIRS_MAX).then_some(taken + 1);
        match self
            .queue_pairs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        {
            Ok(_) => Ok(()),
            Err(taken) => Err(format!(
                "{} has all its {taken} queue pairs in use",
                self.name
            )),
        }
    }

    /// Gives back what [`take_queue_pair`](Self::take_queue_pair) took.
    pub(crate) fn return_queue_pair(&self) {
        self.queue_pairs.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn context(&self) -> *mut abi::Context {
        self.context.as_ptr()
    }

    /// Returns what is called through the device itself.
    pub(crate) fn ops(&self) -> &abi::ContextOps {
        // SAFETY: the context is open for as long as `self`, and its functions do not change.
        unsafe { &self.context.as_ref().ops }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: it is open, and whatever was made of it held the device and is gone.
        let _nothing_to_do_about_it = unsafe { (self.verbs.close_device)(self.context()) };
    }
}

/// The devices of this machine.
struct List<'a> {
    verbs: &'a Verbs,
    first: NonNull<*mut abi::Device>,
    count: usize,
}

impl<'a> List<'a> {
    fn new(verbs: &'a Verbs) -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: `count` is what is filled in.
        let first = made(unsafe { (verbs.get_device_list)(&raw mut count) })?;
        let count = usize::try_from(count).unwrap_or(0);
        Ok(Self {
            verbs,
            first,
            count,
        })
    }

    fn devices(&self) -> &[*mut abi::Device] {
        // SAFETY: the list is an array of that many, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        // SAFETY: it was made by the function that belongs to this one; open devices do not need it.
        unsafe { (self.verbs.free_device_list)(self.first.as_ptr()) };
    }
}

/// Returns the speed of a port, of which verbs tell the number of lanes and the kind of each; 0 for what is not known.
fn speed_mbps(width: u8, speed: u8) -> u32 {
    let lanes = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 0,
    };
    let lane = match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    };
    lanes * lane
}

fn state(state: u32) -> &'static str {
    match state {
        abi::PORT_DOWN => "DOWN",
        2 => "INIT",
        3 => "ARMED",
        _ => "not ACTIVE",
    }
}

/// Devices over Thunderbolt have this one, and others begin to count here.
pub(crate) const PORT: u8 = 1;
/// What a device over Thunderbolt has.
pub(crate) const QUEUE_PAIRS_MAX: usize = 10;
