//! What the two ends of a copy say to each other, and the watch over the other end.
//!
//! Each end says something every few seconds. One that is silent for a minute is gone, or stopped; then its lanes are
//! closed, which ends every wait. From a lane alone that cannot be told: it may be still for as long as the other end
//! writes to its disk.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::FabricError;
use shoal_fabric::channel::{Channel, Receiver, Sender};
use shoal_fabric::lane::{Closer, Lane};

use super::error::CopyError;
use super::wire::Message;
use crate::control::{decode, encode};

/// One end's conversation with the other. Dropping it ends it.
pub(super) struct Talk {
    peer: String,
    sender: Arc<Mutex<Sender>>,
    /// Heard by one thread; the lock is there because several speak.
    heard: Mutex<mpsc::Receiver<Result<Message, CopyError>>>,
    lanes: Closers,
    /// Its end ends the signs of life.
    _pings: mpsc::Sender<()>,
}

type Closers = Arc<Mutex<Vec<Closer>>>;

impl Talk {
    /// Takes a channel on which a copy has been ordered. `peer` is what errors call the other end.
    pub(super) fn over(channel: Channel, peer: &str) -> Self {
        Self::with_patience(channel, peer, SILENCE_MAX)
    }

    fn with_patience(channel: Channel, peer: &str, silence_max: Duration) -> Self {
        let (sender, receiver) = channel.split();
        let sender = Arc::new(Mutex::new(sender));
        let (says, heard) = mpsc::sync_channel(MESSAGES_MAX);
        let lanes = Closers::default();
        let (pings, ended) = mpsc::channel();
        thread::spawn({
            let (peer, lanes) = (peer.to_owned(), Arc::clone(&lanes));
            move || listen(receiver, silence_max, &peer, &lanes, &says)
        });
        thread::spawn({
            let sender = Arc::clone(&sender);
            move || show_life(&sender, silence_max / PINGS_IN_SILENCE, &ended)
        });
        Self {
            peer: peer.to_owned(),
            sender,
            heard: Mutex::new(heard),
            lanes,
            _pings: pings,
        }
    }

    /// Has the lanes closed when the other end is not there any more, or cannot go on.
    pub(super) fn watch_over(&self, lanes: &[Lane]) -> Result<(), CopyError> {
        let lanes = lanes.iter().map(Lane::closer);
        *lock(&self.lanes) = lanes.collect::<Result<_, _>>().map_err(CopyError::Cut)?;
        Ok(())
    }

    /// Closes them from here.
    pub(super) fn close_lanes(&self) {
        close(&self.lanes);
    }

    pub(super) fn say(&self, message: &Message) -> Result<(), CopyError> {
        Ok(lock(&self.sender).send(&encode(message))?)
    }

    /// Waits for the next message; a failure of the other end is an error here, in its words.
    pub(super) fn hear(&self) -> Result<Message, CopyError> {
        lock(&self.heard)
            .recv()
            .unwrap_or_else(|_| Err(self.over_already()))
    }

    /// The same, for a short time; nothing where none comes.
    pub(super) fn hear_for(&self, time: Duration) -> Option<Result<Message, CopyError>> {
        match lock(&self.heard).recv_timeout(time) {
            Ok(heard) => Some(heard),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(self.over_already())),
        }
    }

    /// Listens to an end that may still say why it cannot go on, for a short time.
    pub(super) fn hear_out(&self) -> Option<CopyError> {
        let until = Instant::now() + FAREWELL_TIME_MAX;
        let heard = lock(&self.heard);
        while let Ok(heard) = heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if let Err(error @ CopyError::Node { .. }) = heard {
                return Some(error);
            }
        }
        None
    }

    /// Tells the other end why this one stops, and hears it out: closing at once could take the news back.
    pub(super) fn hang_up(&self, error: &CopyError) {
        self.close_lanes();
        if matches!(error, CopyError::Node { .. } | CopyError::Connection(_)) {
            return;
        }
        let reason = error.to_string();
        if self.say(&Message::Failed { reason }).is_ok() {
            self.hear_out();
        }
    }

    fn over_already(&self) -> CopyError {
        CopyError::Connection(FabricError::Closed {
            peer: self.peer.clone(),
            reason: "it has ended the copy".to_owned(),
        })
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        lock(&self.sender).close();
    }
}

/// Passes on what comes, until nothing can come any more.
fn listen(
    mut receiver: Receiver,
    silence_max: Duration,
    peer: &str,
    lanes: &Closers,
    says: &mpsc::SyncSender<Result<Message, CopyError>>,
) {
    loop {
        let bytes = receiver.recv(Some(Instant::now() + silence_max));
        let heard = match bytes.and_then(|bytes| decode(&bytes)) {
            Ok(Message::Ping) => continue,
            Ok(Message::Failed { reason }) => Err(CopyError::Node {
                node: peer.to_owned(),
                reason,
            }),
            heard => heard.map_err(CopyError::Connection),
        };
        let is_last = heard.is_err();
        if is_last {
            close(lanes);
        }
        if says.send(heard).is_err() || is_last {
            return;
        }
    }
}

fn show_life(sender: &Mutex<Sender>, every: Duration, ended: &mpsc::Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(every) {
        if lock(sender).send(&encode(&Message::Ping)).is_err() {
            return;
        }
    }
}

fn close(lanes: &Closers) {
    lock(lanes).iter().for_each(Closer::close);
}

/// Neither a sender nor a list of lanes is left half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Messages that wait to be attended to; the protocol has fewer under way.
const MESSAGES_MAX: usize = 32;
const SILENCE_MAX: Duration = Duration::from_secs(60);
const PINGS_IN_SILENCE: u32 = 12;
/// How long an end that stops listens for what the other has to say.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use shoal_fabric::Key;
    use shoal_fabric::lane::Lanes;
    use shoal_fabric::tcp::Config;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (key, soon) = (
            Key::from_token("fish"),
            Instant::now() + Duration::from_secs(60),
        );
        thread::scope(|scope| {
            let connecting = scope.spawn(|| Channel::connect(&address, &key, soon).unwrap());
            let accepted = Channel::accept(listener.accept().unwrap().0, &key, soon).unwrap();
            (connecting.join().unwrap(), accepted)
        })
    }

    #[test]
    fn an_end_that_is_silent_for_too_long_takes_its_lanes_with_it() {
        let (ours, _theirs_says_nothing) = pair();
        let (leads, follows) = pair();
        let (config, key) = (Config::default(), Key::from_token("fish"));
        let soon = Instant::now() + Duration::from_secs(60);
        let only = |lanes: Result<Lanes, _>| lanes.unwrap().lanes.remove(0);
        let (lane, mut end_of_lane) = thread::scope(|scope| {
            let led = scope.spawn(|| only(Lanes::lead(leads, &config, &key, soon)));
            let followed = only(Lanes::follow(follows, &config, &key, soon));
            (led.join().unwrap(), followed)
        });
        let talk = Talk::with_patience(ours, "there", Duration::from_millis(300));
        talk.watch_over(&[lane]).unwrap();
        let silent = talk.hear().err().unwrap();
        assert!(
            matches!(silent, CopyError::Connection(FabricError::Silent { .. })),
            "{silent}"
        );
        assert_eq!(end_of_lane.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn an_end_with_nothing_to_say_shows_that_it_lives() {
        let (ours, mut theirs) = pair();
        let talk = Talk::with_patience(ours, "there", Duration::from_secs(2));
        for _ in 0..3 {
            let bytes = theirs.recv(Some(Instant::now() + Duration::from_secs(60)));
            assert!(matches!(decode(&bytes.unwrap()), Ok(Message::Ping)));
        }
        theirs.send(&encode(&Message::Ping)).unwrap();
        theirs.send(&encode(&Message::Ready)).unwrap();
        assert!(matches!(talk.hear(), Ok(Message::Ready)));
    }
}
