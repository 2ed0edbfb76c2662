//! Memory that a group lends for values that it is to reduce or to send.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::pages::Pages;

/// Values in memory that a group has [lent](crate::Group::region), zero at first.
pub struct Region {
    pages: Arc<Pages>,
    len: usize,
}

impl Region {
    /// Takes all of `pages`, which nobody else may write, nor read but devices that send from them and ranks that receive.
    pub(crate) fn new(pages: Arc<Pages>) -> Self {
        let len = pages.bytes() / size_of::<f32>();
        Self { pages, len }
    }
}

impl Deref for Region {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the pages hold `len` values, any bytes are some, and only through `self` are they written.
        unsafe { std::slice::from_raw_parts(self.pages.start().as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; whoever else holds the pages only has them read, and a collective does not return before that is
        // over, unless it fails, and then what was sent is worth nothing: the group is over, and a rank that reads it too late
        // fails, or learns that next if a device has sent it what has changed.
        unsafe { std::slice::from_raw_parts_mut(self.pages.start().as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::error::FabricError;
    use crate::group::Group;
    use crate::link::{Interest, Links, Transport};
    use crate::memory::{self, MemoryLinks};
    use crate::pace::Pace;
    use crate::rank::Rank;

    /// Links that hold on to what was lent, once something was.
    struct Held {
        links: MemoryLinks,
        lent: Option<Instant>,
        /// Says how much of it, so long after.
        left: fn(Duration) -> io::Result<usize>,
    }

    impl Links for Held {
        fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            self.links.write(peer, parts)
        }

        fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
            self.links.read(peer, into)
        }

        fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
            self.links.wait(interests, timeout)
        }

        fn lend(&mut self, _pages: &Arc<Pages>) {
            self.lent = Some(Instant::now());
        }

        fn unsettled(&mut self, _peer: usize) -> io::Result<usize> {
            self.lent.map_or(Ok(0), |at| (self.left)(at.elapsed()))
        }

        fn transport(&self, peer: usize) -> Option<Transport> {
            self.links.transport(peer)
        }
    }

    /// Sums a value that is not lent, then one that is, by two ranks, of which the first holds on to it.
    fn sum_of_lent(
        timeout: Duration,
        left: fn(Duration) -> io::Result<usize>,
    ) -> Result<(), FabricError> {
        let mut links = memory::mesh(2).into_iter();
        let group = |rank: u16, links: Box<dyn Links>| {
            Group::new(Rank(rank), 2, links, Pace::of_machine(2))
        };
        let holding = Held {
            links: links.next().expect("rank 0's"),
            lent: None,
            left,
        };
        let mut ours = group(0, Box::new(holding));
        let mut theirs = group(1, Box::new(links.next().expect("rank 1's")));
        thread::scope(|scope| {
            scope.spawn(|| {
                let sums = [(); 2].map(|()| theirs.all_reduce_sum(&mut [2.0]));
                assert!(sums[0].is_ok(), "nothing was lent");
            });
            ours.all_reduce_sum(&mut [1.0]).expect("nothing was lent");
            ours.set_timeout(timeout);
            let mut region = ours.region(1).expect("memory");
            ours.all_reduce_sum(&mut region)
        })
    }

    #[test]
    fn an_exchange_does_not_end_before_what_was_lent_may_change() {
        let timeout = Duration::from_secs(60);
        let held = sum_of_lent(timeout, |_| Err(io::Error::other("held")));
        let held = held.expect_err("it is held");
        assert_eq!(held.lost_rank(), Some(Rank(1)), "{held}");
        assert!(held.to_string().contains("held"), "{held}");
    }

    /// Some less in every step, of which the timeout has four, but six steps until nothing is left.
    #[test]
    fn a_reader_of_what_was_lent_may_be_slow_but_not_still() {
        const STEP: Duration = Duration::from_millis(250);
        let began = Instant::now();
        let slow =
            |since: Duration| Ok(6_usize.saturating_sub(since.div_duration_f32(STEP) as usize));
        sum_of_lent(4 * STEP, slow).expect("it goes on");
        assert!(began.elapsed() >= 6 * STEP);
        let still = sum_of_lent(4 * STEP, |_| Ok(1)).expect_err("nothing moves");
        assert!(
            matches!(still, FabricError::Timeout { rank: Rank(1), .. }),
            "{still}"
        );
    }

    #[test]
    fn a_region_holds_its_values_and_nothing_beside_them() {
        let pages = Arc::new(Pages::new(4 * 5000).expect("memory"));
        let mut region = Region::new(Arc::clone(&pages));
        assert_eq!(*region, [0.0; 5000]);
        region[4999] = 7.0;
        assert_eq!((region.len(), region[4999]), (5000, 7.0));
        let bytes: &[u8] = bytemuck::cast_slice(&region);
        assert!(pages.hold(bytes) && pages.hold(&bytes[17..]) && !pages.hold(&[0; 8]));
        let empty = Region::new(Arc::new(Pages::new(0).expect("memory")));
        assert!(empty.is_empty());
    }
}
