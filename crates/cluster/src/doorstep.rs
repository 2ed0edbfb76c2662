//! Where those stand who have connected to a node and not yet proved the token.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Room for so many strangers. When it is full the one who has stood there longest has to go, so that whoever knows the
/// token gets in while others only hold places.
#[derive(Default)]
pub(crate) struct Doorstep {
    standing: Mutex<Standing>,
    left: Condvar,
}

#[derive(Default)]
struct Standing {
    next: u64,
    /// By their number, which is the order in which they came.
    streams: BTreeMap<u64, TcpStream>,
}

/// One place on the doorstep, until this is dropped.
pub(crate) struct Place {
    doorstep: Arc<Doorstep>,
    number: u64,
}

impl Doorstep {
    /// Gives a stranger a place, after the oldest has gone if there is none. That one's reads and writes fail at once,
    /// which is how its thread learns of it.
    pub(crate) fn enter(self: &Arc<Self>, stream: &TcpStream) -> io::Result<Place> {
        let stream = stream.try_clone()?;
        let mut standing = self.lock();
        while standing.streams.len() >= STANDING_MAX {
            if let Some((_, oldest)) = standing.streams.first_key_value() {
                let _may_have_left_already = oldest.shutdown(Shutdown::Both);
            }
            standing = self.left.wait(standing).expect("no panic under this lock");
        }
        let number = standing.next;
        standing.next += 1;
        standing.streams.insert(number, stream);
        Ok(Place {
            doorstep: Arc::clone(self),
            number,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().expect("no panic under this lock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doorstep.lock().streams.remove(&self.number);
        self.doorstep.left.notify_one();
    }
}

/// Enough that proving the token, a few round trips, is done before so many others have come.
pub(crate) const STANDING_MAX: usize = 64;
