//! The library for RDMA devices, found when the program runs: one program serves machines with and without it.

use std::ffi::CStr;
use std::io;
use std::os::raw::c_int;

use libloading::Library;

use super::abi;

/// The functions of the library. It stays loaded for as long as they exist.
pub(crate) struct Verbs {
    pub(crate) get_device_list: abi::GetDeviceList,
    pub(crate) free_device_list: abi::FreeDeviceList,
    pub(crate) get_device_name: abi::GetDeviceName,
    pub(crate) open_device: abi::OpenDevice,
    pub(crate) close_device: abi::CloseDevice,
    pub(crate) query_port: abi::QueryPort,
    pub(crate) query_gid: abi::QueryGid,
    pub(crate) alloc_pd: abi::AllocPd,
    pub(crate) dealloc_pd: abi::DeallocPd,
    pub(crate) reg_mr: abi::RegMr,
    pub(crate) dereg_mr: abi::DeregMr,
    pub(crate) create_cq: abi::CreateCq,
    pub(crate) destroy_cq: abi::DestroyCq,
    pub(crate) create_qp: abi::CreateQp,
    pub(crate) modify_qp: abi::ModifyQp,
    pub(crate) query_qp: abi::QueryQp,
    pub(crate) destroy_qp: abi::DestroyQp,
    /// Without it, whoever waits looks again and again.
    pub(crate) events: Option<Events>,
    wc_status_str: Option<abi::WcStatusStr>,
    _library: Library,
}

/// The functions that let a rank sleep until a completion comes.
#[derive(Clone, Copy)]
pub(crate) struct Events {
    pub(crate) create_comp_channel: abi::CreateCompChannel,
    pub(crate) destroy_comp_channel: abi::DestroyCompChannel,
    pub(crate) get_cq_event: abi::GetCqEvent,
    pub(crate) ack_cq_events: abi::AckCqEvents,
}

impl Verbs {
    /// Loads the library.
    ///
    /// # Errors
    /// Why there is no RDMA on this machine.
    pub(crate) fn load() -> Result<Self, String> {
        // SAFETY: what runs when the system's own library is loaded is rdma-core's or Apple's to keep in order.
        let library =
            unsafe { Library::new(NAME) }.map_err(|_| format!("{NAME} is not on this machine"))?;
        macro_rules! find {
            ($name:literal) => {
                // SAFETY: the function has this name and this type in `infiniband/verbs.h`; `abi` holds the types, and its
                // test compares what they are made of.
                unsafe { library.get($name) }
                    .map(|symbol| *symbol)
                    .map_err(|error| format!("{NAME} lacks a function ({error})"))
            };
        }
        let events = || -> Result<Events, String> {
            Ok(Events {
                create_comp_channel: find!("ibv_create_comp_channel")?,
                destroy_comp_channel: find!("ibv_destroy_comp_channel")?,
                get_cq_event: find!("ibv_get_cq_event")?,
                ack_cq_events: find!("ibv_ack_cq_events")?,
            })
        };
        // What Apple writes about RDMA over Thunderbolt does not speak of them.
        let events = match cfg!(target_os = "macos") {
            true => None,
            false => events().ok(),
        };
        Ok(Self {
            get_device_list: find!("ibv_get_device_list")?,
            free_device_list: find!("ibv_free_device_list")?,
            get_device_name: find!("ibv_get_device_name")?,
            open_device: find!("ibv_open_device")?,
            close_device: find!("ibv_close_device")?,
            query_port: find!("ibv_query_port")?,
            query_gid: find!("ibv_query_gid")?,
            alloc_pd: find!("ibv_alloc_pd")?,
            dealloc_pd: find!("ibv_dealloc_pd")?,
            reg_mr: find!("ibv_reg_mr")?,
            dereg_mr: find!("ibv_dereg_mr")?,
            create_cq: find!("ibv_create_cq")?,
            destroy_cq: find!("ibv_destroy_cq")?,
            create_qp: find!("ibv_create_qp")?,
            modify_qp: find!("ibv_modify_qp")?,
            query_qp: find!("ibv_query_qp")?,
            destroy_qp: find!("ibv_destroy_qp")?,
            events,
            wc_status_str: find!("ibv_wc_status_str").ok(),
            _library: library,
        })
    }

    /// Says in words what became of a request that failed.
    pub(crate) fn status(&self, status: u32) -> String {
        let number = || format!("status {status}");
        let Some(wc_status_str) = self.wc_status_str else {
            return number();
        };
        // SAFETY: takes any number, and returns a string that is part of the library, or nothing.
        let words = unsafe { wc_status_str(status) };
        if words.is_null() {
            return number();
        }
        // SAFETY: it is not null, and the library's strings end in a zero.
        let words = unsafe { CStr::from_ptr(words) };
        words.to_string_lossy().into_owned()
    }
}

/// Returns the outcome of a function that returns 0, or what went wrong.
pub(crate) fn check(status: c_int) -> io::Result<()> {
    match status {
        0 => Ok(()),
        // Some return the number, others -1 and leave it in `errno`.
        number if number > 0 => Err(io::Error::from_raw_os_error(number)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns what a function made, or what went wrong.
pub(crate) fn made<T>(made: *mut T) -> io::Result<std::ptr::NonNull<T>> {
    std::ptr::NonNull::new(made).ok_or_else(|| match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(0) => io::ErrorKind::Other.into(),
        error => error,
    })
}

#[cfg(target_os = "macos")]
const NAME: &str = "librdma.dylib";
#[cfg(not(target_os = "macos"))]
const NAME: &str = "libibverbs.so.1";
