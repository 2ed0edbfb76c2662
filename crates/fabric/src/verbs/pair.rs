//! One end of a connection between two devices.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::abi;
use super::completions::{Completion, Completions};
use super::device::{Address, Device, PORT};
use super::endpoint::{Endpoint, Kind, QUEUE_FRAMES, SLOT_BYTES, SLOTS};
use super::library::{check, made};
use super::registration::{Domain, Registration};
use super::slots::Slots;
use crate::pages::Pages;

/// A queue pair with the memory that its requests name.
///
/// The first half of the slots is for what comes in, the second for what goes out. A slot belongs to the device from when
/// it is posted until its completion was taken.
pub(crate) struct QueuePair {
    qp: NonNull<abi::Qp>,
    of_device: Vec<bool>,
    address: Address,
    psn: u32,
    /// Of the other end, once connected.
    peer_psn: u32,
    kind: Kind,
    // In this order, after the queue pair: nothing that a request names goes before it.
    slots: Slots,
    lent: Vec<Registration>,
    /// Whether a message may be put together from several places.
    gathers: bool,
    completions: Completions,
    domain: Domain,
    _place: Place,
}

// SAFETY: verbs may be called from any thread; the pointer is not used for anything else.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// Makes one that is not connected yet, with the first of `kinds` that the device has.
    ///
    /// # Errors
    /// What the device cannot do.
    pub(crate) fn new(
        device: &Arc<Device>,
        address: Address,
        kinds: &[Kind],
        psn: u32,
    ) -> Result<Self, String> {
        let place = Place::take(device)?;
        let fails = |what: &'static str| {
            let name = device.name.clone();
            move |error: io::Error| format!("{name} gives no {what} ({error})")
        };
        let domain = Domain::new(Arc::clone(device)).map_err(fails("protection domain"))?;
        let count = 2 * SLOTS;
        let completions =
            Completions::new(Arc::clone(device), count).map_err(fails("completion queue"))?;
        let slots = Slots::new(&domain, count, SLOT_BYTES).map_err(fails("memory region"))?;
        let mut made = Err("no kind of queue pair was asked for".to_owned());
        for kind in kinds {
            made = Self::create(&domain, &completions, *kind, PLACES_WANTED)
                .or_else(|_| Self::create(&domain, &completions, *kind, 1))
                .map(|qp| (qp, *kind))
                .map_err(fails("queue pair"));
            if made.is_ok() {
                break;
            }
        }
        let (qp, kind) = made?;
        let mut pair = Self {
            qp,
            of_device: vec![false; count],
            address,
            psn: psn & PSN_MAX,
            peer_psn: 0,
            kind,
            slots,
            lent: Vec::new(),
            gathers: false,
            completions,
            domain,
            _place: place,
        };
        pair.initialise().map_err(fails("queue pair"))?;
        Ok(pair)
    }

    fn create(
        domain: &Domain,
        completions: &Completions,
        kind: Kind,
        places: u32,
    ) -> io::Result<NonNull<abi::Qp>> {
        // Thunderbolt counts the depth of its queues in frames.
        let depth = u32::try_from(QUEUE_FRAMES).map_err(|_| io::ErrorKind::InvalidInput)?;
        let cap = abi::QpCap {
            max_send_wr: depth,
            max_recv_wr: depth,
            max_send_sge: places,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let mut init = abi::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: completions.cq(),
            recv_cq: completions.cq(),
            srq: ptr::null_mut(),
            cap,
            qp_type: match kind {
                Kind::Reliable => abi::QPT_RC,
                Kind::Unreliable => abi::QPT_UC,
            },
            sq_sig_all: 0,
        };
        // SAFETY: domain and completion queue exist and outlive the queue pair, for one value owns all three.
        made(unsafe { (domain.device.verbs.create_qp)(domain.pd(), &raw mut init) })
    }

    fn initialise(&mut self) -> io::Result<()> {
        let access = abi::ACCESS_LOCAL_WRITE;
        let mut attr = abi::QpAttr {
            qp_state: abi::QPS_INIT,
            port_num: PORT,
            qp_access_flags: access as u32,
            ..abi::QpAttr::default()
        };
        let mask = abi::QP_STATE | abi::QP_PKEY_INDEX | abi::QP_PORT | abi::QP_ACCESS_FLAGS;
        self.modify(&mut attr, mask)?;
        // What was asked for is not always what was given.
        let mut init = abi::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: ptr::null_mut(),
            recv_cq: ptr::null_mut(),
            srq: ptr::null_mut(),
            cap: abi::QpCap::default(),
            qp_type: 0,
            sq_sig_all: 0,
        };
        let verbs = &self.domain.device.verbs;
        // SAFETY: the queue pair exists, and both structures are what is filled in.
        check(unsafe {
            (verbs.query_qp)(self.qp.as_ptr(), &raw mut attr, abi::QP_CAP, &raw mut init)
        })?;
        let depth = attr.cap.max_recv_wr.min(attr.cap.max_send_wr) as usize;
        if depth < SLOTS {
            let reason = format!("only {depth} requests deep");
            return Err(io::Error::other(reason));
        }
        self.gathers = PLACES_WANTED > 1 && attr.cap.max_send_sge >= PLACES_WANTED;
        Ok(())
    }

    /// Returns what the other end needs to know of this one.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let device = &self.domain.device;
        // SAFETY: the queue pair exists; its number does not change.
        let number = unsafe { self.qp.as_ref() }.qp_num;
        Endpoint {
            kind: self.kind,
            number,
            psn: self.psn,
            ip: self.address.ip,
            lid: device.lid,
            mtu: device.mtu,
        }
    }

    /// Connects it, and makes it ready to receive: the other end may send once it knows.
    ///
    /// # Errors
    /// What the device refuses.
    pub(crate) fn connect(&mut self, peer: &Endpoint) -> io::Result<()> {
        self.peer_psn = peer.psn;
        let reliable = self.kind == Kind::Reliable;
        let mut attr = abi::QpAttr {
            qp_state: abi::QPS_RTR,
            path_mtu: peer.mtu.min(self.domain.device.mtu),
            dest_qp_num: peer.number,
            rq_psn: peer.psn,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
            ah_attr: abi::AhAttr {
                grh: abi::GlobalRoute {
                    dgid: abi::Gid(peer.ip.to_ipv6_mapped().octets()),
                    sgid_index: self.address.index,
                    // Over Thunderbolt there are no routers, and Apple's note says 1.
                    hop_limit: if reliable { 64 } else { 1 },
                    ..abi::GlobalRoute::default()
                },
                dlid: peer.lid,
                is_global: 1,
                port_num: PORT,
                ..abi::AhAttr::default()
            },
            ..abi::QpAttr::default()
        };
        let mut mask =
            abi::QP_STATE | abi::QP_AV | abi::QP_PATH_MTU | abi::QP_DEST_QPN | abi::QP_RQ_PSN;
        if reliable {
            mask |= abi::QP_MAX_DEST_RD_ATOMIC | abi::QP_MIN_RNR_TIMER;
        }
        self.modify(&mut attr, mask)?;
        let mut attr = abi::QpAttr {
            qp_state: abi::QPS_RTS,
            sq_psn: self.psn,
            max_rd_atomic: 1,
            timeout: ACK_TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RETRIES,
            ..abi::QpAttr::default()
        };
        let mut mask = abi::QP_STATE | abi::QP_SQ_PSN;
        if reliable {
            mask |=
                abi::QP_TIMEOUT | abi::QP_RETRY_CNT | abi::QP_RNR_RETRY | abi::QP_MAX_QP_RD_ATOMIC;
        }
        self.modify(&mut attr, mask)?;
        // Not before now: Apple's devices take no receives in earlier states.
        (0..SLOTS).try_for_each(|slot| self.post_recv(slot))
    }

    fn modify(&mut self, attr: &mut abi::QpAttr, mask: i32) -> io::Result<()> {
        let modify_qp = self.domain.device.verbs.modify_qp;
        // SAFETY: the queue pair exists, and `attr` is complete.
        check(unsafe { modify_qp(self.qp.as_ptr(), attr, mask) })
    }

    /// Gives a slot of the first half to the device, to be filled.
    pub(crate) fn post_recv(&mut self, slot: usize) -> io::Result<()> {
        let post_recv = self.domain.device.ops().post_recv;
        let post_recv = post_recv.ok_or(io::ErrorKind::Unsupported)?;
        self.give(slot);
        let mut place = self.slots.place(slot, 0..SLOT_BYTES);
        let mut request = abi::RecvWr {
            wr_id: slot as u64,
            next: ptr::null_mut(),
            sg_list: &raw mut place,
            num_sge: 1,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair exists, and the request is read before the call returns. The slot stays registered for as
        // long as there is the queue pair, and nobody looks at it until its completion was taken.
        check(unsafe { post_recv(self.qp.as_ptr(), &raw mut request, &raw mut bad) })
    }

    /// Gives a slot of the second half to the device, to be sent as a whole; of `lent`, [found](Self::find) memory goes
    /// instead of the slot's own from this place on, and must stay as it is until the completion was taken.
    ///
    /// Always as a whole: over Thunderbolt what is sent and what it is received into must have the same number of frames.
    pub(crate) fn post_send(
        &mut self,
        slot: usize,
        lent: Option<(usize, abi::Sge)>,
    ) -> io::Result<()> {
        let post_send = self.domain.device.ops().post_send;
        let post_send = post_send.ok_or(io::ErrorKind::Unsupported)?;
        self.give(slot);
        let place = |part| self.slots.place(slot, part);
        let mut places: SmallVec<[abi::Sge; PLACES]> = match lent {
            None => smallvec![place(0..SLOT_BYTES)],
            Some((at, lent)) => smallvec![place(0..at), lent],
        };
        let sent: u32 = places.iter().map(|place| place.length).sum();
        // A device may take an empty place for a very large one.
        if (sent as usize) < SLOT_BYTES {
            places.push(place(sent as usize..SLOT_BYTES));
        }
        let mut request = abi::SendWr {
            wr_id: slot as u64,
            next: ptr::null_mut(),
            sg_list: places.as_mut_ptr(),
            num_sge: places.len() as i32,
            opcode: abi::WR_SEND,
            send_flags: abi::SEND_SIGNALED,
            imm_data: 0,
            _wr: [0; 4],
            _qp_type: 0,
            _bind_mw: [0; 6],
        };
        let mut bad = ptr::null_mut();
        // SAFETY: as for a receive; what was lent stays registered for as long as well.
        check(unsafe { post_send(self.qp.as_ptr(), &raw mut request, &raw mut bad) })
    }

    fn give(&mut self, slot: usize) {
        assert!(!self.of_device[slot], "a slot is posted once at a time");
        self.of_device[slot] = true;
    }

    /// Makes memory known to the device, so that messages can be [sent](Self::post_send) from it.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(crate) fn lend(&mut self, pages: &Arc<Pages>) -> Result<(), String> {
        let name = &self.domain.device.name;
        if !self.gathers {
            return Err(format!("{name} sends from one place at a time"));
        }
        let lent = Registration::new(&self.domain, Arc::clone(pages));
        let lent = lent.map_err(|error| format!("{name} gives no memory region ({error})"))?;
        self.lent.push(lent);
        Ok(())
    }

    /// Returns how the device is told of `part`, if it lies in memory that was [lent](Self::lend).
    pub(crate) fn find(&self, part: &[u8]) -> Option<abi::Sge> {
        let lent = self.lent.iter().find(|lent| lent.pages.hold(part))?;
        Some(lent.sge(part.as_ptr(), part.len()))
    }

    /// Takes some completions, and their slots with them; says how many.
    pub(crate) fn poll(&mut self) -> io::Result<usize> {
        let count = self.completions.poll()?;
        for index in 0..count {
            let slot = self.completions.taken(index).slot;
            let of_device = self.of_device.get_mut(slot);
            *of_device.ok_or_else(|| io::Error::other("the device made a request up"))? = false;
        }
        Ok(count)
    }

    /// Returns one of those that were taken last.
    pub(crate) fn taken(&self, index: usize) -> Completion {
        self.completions.taken(index)
    }

    /// Returns a slot that is not the device's.
    pub(crate) fn slot(&self, slot: usize) -> &[u8] {
        assert!(!self.of_device[slot], "the completion was taken");
        // SAFETY: the device writes to slots only that are posted.
        unsafe { self.slots.slot(slot) }
    }

    /// Returns a slot that is not the device's, to be filled.
    pub(crate) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.of_device[slot], "the completion was taken");
        // SAFETY: the device reads and writes slots only that are posted.
        unsafe { self.slots.slot_mut(slot) }
    }

    pub(crate) fn completions(&mut self) -> &mut Completions {
        &mut self.completions
    }

    pub(crate) fn file(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.completions.file()
    }

    pub(crate) fn psn(&self) -> u32 {
        self.psn
    }

    pub(crate) fn peer_psn(&self) -> u32 {
        self.peer_psn
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn device(&self) -> &Device {
        &self.domain.device
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // Not by way of the error state: Apple's devices then do not let go of the memory.
        // SAFETY: made by `create`, and destroyed once.
        let _nothing_to_do_about_it =
            unsafe { (self.domain.device.verbs.destroy_qp)(self.qp.as_ptr()) };
    }
}

/// One of the queue pairs that a device has.
struct Place(Arc<Device>);

impl Place {
    fn take(device: &Arc<Device>) -> Result<Self, String> {
        device.take_queue_pair()?;
        Ok(Self(Arc::clone(device)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.return_queue_pair();
    }
}

/// Packets are counted in 24 bits.
const PSN_MAX: u32 = 0xff_ffff;
/// 4.096 µs · 2^14: 67 ms.
const ACK_TIMEOUT: u8 = 14;
const RETRIES: u8 = 7;
/// Of a message that sends lent memory: its beginning, that memory, and the rest of the slot.
const PLACES: usize = 3;
/// Apple says nothing of messages that are put together, and nobody has tried any.
const PLACES_WANTED: u32 = if cfg!(target_os = "macos") {
    1
} else {
    PLACES as u32
};
