//! What lies in a ring of shared memory: records, which hold bytes or say where they lie in memory that was lent.
//!
//! ```text
//! 0        4        8                16
//! │ length │ region │ offset         │ `length` bytes, or in place of them one
//! ```
//! Numbers are those of the machine. `region` counts what this end has lent, from 1 on; 0 stands for bytes in the record, and
//! [`NOTICE`] for bytes that tell of a further region. Bytes of a region may change once the one in place of them was read.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bytemuck::{Pod, Zeroable};
use tracing::debug;

use crate::loan::{Loan, Notice};
use crate::pages::Pages;
use crate::ring::{Reader, Writer};
use crate::segment::RING_BYTES;
use crate::shared::Half;

/// The end that writes records.
pub(crate) struct RecordWriter {
    ring: Writer<Half>,
    lent: Vec<Arc<Pages>>,
    /// The other end may be reading what was lent.
    lends: bool,
}

impl RecordWriter {
    pub(crate) fn new(ring: Writer<Half>) -> Self {
        Self {
            ring,
            lent: Vec::new(),
            lends: false,
        }
    }

    /// Writes what there is room for, at most a bite or up to the end of the first part that was lent.
    pub(crate) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut heads = parts.iter().map(|part| self.head_of_lent(part)).enumerate();
        let lent = heads.find_map(|(i, head)| Some((i, head?)));
        let inline = &parts[..lent.map_or(parts.len(), |(i, _)| i)];

        let bytes: usize = inline.iter().map(|part| part.len()).sum();
        let mut written = self.write_bite(inline, bytes.min(BITE_BYTES))?;
        if let Some((_, head)) = lent.filter(|_| written == bytes)
            && self.ring.room(RECORD_BYTES_MIN)? >= RECORD_BYTES_MIN
        {
            self.put_head(head);
            self.ring.put(&[0]);
            self.lends = true;
            written += head.length as usize;
        }
        self.ring.publish();
        Ok(written)
    }

    /// Puts the first of the bytes of `parts` in, at most so many, as one record.
    fn write_bite(&mut self, parts: &[IoSlice<'_>], bytes_max: usize) -> io::Result<usize> {
        let room = self.ring.room(HEAD_BYTES + bytes_max)?;
        let bytes = bytes_max.min(room.saturating_sub(HEAD_BYTES));
        let mut left = bytes;
        if left > 0 {
            self.put_head(Head::of(0, bytes));
        }
        for part in parts {
            let bite = &part[..part.len().min(left)];
            self.ring.put(bite);
            left -= bite.len();
        }
        Ok(bytes)
    }

    /// Tells the other end of pages, which from when it has opened them on are not copied if what is written lies there.
    pub(crate) fn lend(&mut self, pages: &Arc<Pages>) {
        if let Err(why) = self.tell_of(pages) {
            let bytes = pages.bytes();
            debug!(bytes, why, "values of a region are copied for another rank");
        }
    }

    fn tell_of(&mut self, pages: &Arc<Pages>) -> Result<(), &'static str> {
        if self.lent.len() == REGIONS_MAX {
            return Err("it is one too many");
        }
        let notice = Notice::of(pages).ok_or("no other process can read them")?;
        let notice = bytemuck::bytes_of(&notice);
        let wanted = HEAD_BYTES + notice.len();
        // What is wrong with the ring is for the next write to find.
        if self.ring.room(wanted).unwrap_or(0) < wanted {
            return Err("its ring is full");
        }
        self.put_head(Head::of(NOTICE, notice.len()));
        self.ring.put(notice);
        self.ring.publish();
        self.lent.push(Arc::clone(pages));
        Ok(())
    }

    /// Returns how many bytes the other end has to read before nothing is lent any more.
    pub(crate) fn unsettled(&mut self) -> io::Result<usize> {
        let unread = match self.lends {
            true => RING_BYTES - self.ring.room(RING_BYTES)?,
            false => 0,
        };
        self.lends = unread > 0;
        Ok(unread)
    }

    /// Lends nothing any more; what the other end reads of it from now on is an error there.
    pub(crate) fn reclaim(&self) {
        self.ring.ring().opened().store(0, Ordering::Relaxed);
        // Before anything is written where it was lent.
        fence(Ordering::Release);
    }

    /// See [`Writer::take_sleeper`].
    pub(crate) fn take_sleeper(&self) -> bool {
        self.ring.take_sleeper()
    }

    /// See [`Writer::prepare_sleep`].
    pub(crate) fn prepare_sleep(&mut self, wanted: usize) -> bool {
        self.ring.prepare_sleep(wanted)
    }

    /// See [`Writer::awake`].
    pub(crate) fn awake(&self) {
        self.ring.awake();
    }

    /// Returns where all of `part` lies, if the other end can read it there.
    fn head_of_lent(&self, part: &[u8]) -> Option<Head> {
        if part.len() < LENT_BYTES_MIN || self.lent.is_empty() {
            return None;
        }
        let index = self.lent.iter().position(|pages| pages.hold(part))?;
        let opened = self.ring.ring().opened().load(Ordering::Acquire);
        let start = self.lent[index].start().as_ptr();
        (opened & 1 << index != 0).then(|| Head {
            offset: (part.as_ptr().addr() - start.addr()) as u64,
            ..Head::of(index as u32 + 1, part.len())
        })
    }

    fn put_head(&mut self, head: Head) {
        self.ring.put(bytemuck::bytes_of(&head));
    }
}

/// The end that reads records.
pub(crate) struct RecordReader {
    ring: Reader<Half>,
    /// What is left of the record that is being read; 0 between records.
    rest: Head,
    opened: Vec<Option<Loan>>,
    /// Nobody uses what is read.
    gave_up: bool,
}

impl RecordReader {
    pub(crate) fn new(ring: Reader<Half>) -> Self {
        Self {
            ring,
            rest: Head::zeroed(),
            opened: Vec::new(),
            gave_up: false,
        }
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len().min(BITE_BYTES) && self.begin_record()? {
            let wanted = (into.len() - filled).min(self.rest.length as usize);
            let part = &mut into[filled..][..wanted];
            let count = match self.rest.region {
                0 => self.ring.read(part)?,
                // What was read before stays read.
                region => match self.read_lent(region, part) {
                    Err(_) if filled > 0 => break,
                    read => read?,
                },
            };
            if count == 0 {
                break;
            }
            filled += count;
            self.rest.length -= count as u32;
        }
        Ok(filled)
    }

    /// See [`Reader::take_sleeper`].
    pub(crate) fn take_sleeper(&self) -> bool {
        self.ring.take_sleeper()
    }

    /// See [`Reader::prepare_sleep`]: a record whose bytes are elsewhere leaves one in the ring until they are read.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.ring.prepare_sleep()
    }

    /// See [`Reader::awake`].
    pub(crate) fn awake(&self) {
        self.ring.awake();
    }

    /// Reads also what the other end has taken back, whatever it is by now: behind it may lie why it did.
    pub(crate) fn give_up(&mut self) {
        self.gave_up = true;
    }

    /// Begins the next record if the last one is over; false when there is none yet.
    fn begin_record(&mut self) -> io::Result<bool> {
        while self.rest.length == 0 {
            let mut head = Head::zeroed();
            if !self.read_whole(bytemuck::bytes_of_mut(&mut head))? {
                return Ok(false);
            }
            match head {
                Head { region: NOTICE, .. } => self.open(head)?,
                // No writer makes one, and nothing would end a row of them.
                Head { length: 0, .. } => return Err(damaged()),
                _ => self.rest = head,
            }
        }
        Ok(true)
    }

    /// Opens what the other end lends, and lets it know.
    fn open(&mut self, head: Head) -> io::Result<()> {
        let mut notice = Notice::zeroed();
        let number = self.opened.len();
        if head.length as usize != size_of::<Notice>()
            || number >= REGIONS_MAX
            || !self.read_whole(bytemuck::bytes_of_mut(&mut notice))?
        {
            return Err(damaged());
        }
        let loan = notice.open();
        match &loan {
            Ok(_) => {
                let opened = self.ring.ring().opened();
                opened.fetch_or(1 << number, Ordering::Release);
            }
            Err(error) => {
                debug!(%error, "memory of another rank cannot be read where it lies: it copies");
            }
        }
        self.opened.push(loan.ok());
        Ok(())
    }

    /// Reads the next bytes of the record from a region.
    fn read_lent(&mut self, region: u32, into: &mut [u8]) -> io::Result<usize> {
        let number = region as usize - 1;
        let loan = self.opened.get(number).and_then(Option::as_ref);
        // SAFETY: the other end changes what it lent once the byte in place of it was read, which happens below, or once it has
        // taken it back; then what was read is not used.
        let read = loan.and_then(|loan| unsafe { loan.read(self.rest.offset, into) });
        read.ok_or_else(damaged)?;
        // As in a sequence lock: whoever read what was written after that finds the bit gone.
        fence(Ordering::Acquire);
        let opened = self.ring.ring().opened().load(Ordering::Relaxed);
        if opened & 1 << number == 0 && !self.gave_up {
            return Err(io::Error::other("it has taken back what it lent"));
        }
        self.rest.offset += into.len() as u64;
        if into.len() == self.rest.length as usize && !self.read_whole(&mut [0])? {
            return Err(damaged());
        }
        Ok(into.len())
    }

    /// Reads what is published as a whole or not at all.
    fn read_whole(&mut self, into: &mut [u8]) -> io::Result<bool> {
        match self.ring.read(into)? {
            0 => Ok(false),
            count if count == into.len() => Ok(true),
            _ => Err(damaged()),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Head {
    length: u32,
    region: u32,
    offset: u64,
}

impl Head {
    /// # Panics
    /// If there are more bytes than a payload of a frame may have.
    fn of(region: u32, bytes: usize) -> Self {
        Self {
            length: u32::try_from(bytes).expect("frames are shorter"),
            region,
            offset: 0,
        }
    }
}

/// A region of this number is none, but news of one.
const NOTICE: u32 = u32::MAX;
const HEAD_BYTES: usize = size_of::<Head>();
/// A record without bytes is none.
pub(crate) const RECORD_BYTES_MIN: usize = HEAD_BYTES + 1;
/// The most that is copied at once: the other end takes one bite while this end puts in the next.
const BITE_BYTES: usize = 64 * 1024;
/// Fewer bytes are sooner copied than found.
const LENT_BYTES_MIN: usize = 96 * 1024;
/// As many as have a bit each.
const REGIONS_MAX: usize = u32::BITS as usize;

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "what lies in the shared memory is no record",
    )
}

/// Elsewhere nothing is lent.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::region::Region;
    use crate::segment;
    use crate::shared::Pipes;

    type Ends = (RecordWriter, RecordReader);

    /// Returns both ends of one ring.
    fn ends() -> Ends {
        let offer = segment::Offer::new().expect("shared memory");
        let (opened, proof) = segment::open(offer.name()).expect("it was just offered");
        let created = offer.conclude(&proof).expect("the proof is right");
        let created = Pipes::of_creator(created.expect("it was opened"));
        (created.outgoing, Pipes::of_opener(opened).incoming)
    }

    fn lent(ends: &mut Ends, bytes: usize) -> Region {
        let pages = Arc::new(Pages::to_lend(bytes).expect("memory"));
        ends.0.lend(&pages);
        assert_eq!(ends.1.read(&mut [0]).expect("a notice"), 0);
        Region::new(pages)
    }

    fn bytes(region: &Region) -> &[u8] {
        bytemuck::cast_slice(region)
    }

    fn write(writer: &mut RecordWriter, parts: &[&[u8]]) -> usize {
        let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        writer.write(&parts).expect("the reader is honest")
    }

    #[test]
    fn what_was_lent_is_read_where_it_lies_and_held_until_then() {
        let mut ends = ends();
        // More than the ring holds, so that it cannot have gone through it.
        let mut region = lent(&mut ends, 3 * RING_BYTES);
        let (writer, reader) = (&mut ends.0, &mut ends.1);
        let part = &bytes(&region)[11..];
        assert_eq!(write(writer, &[b"ab", part, b"later"]), 2 + part.len());
        assert!(writer.unsettled().expect("honest") > 0);
        let mut got = vec![1; 2 + part.len()];
        assert_eq!(reader.read(&mut got[..1000]).expect("honest"), 1000);
        assert!(writer.unsettled().expect("honest") > 0);
        // What is read now is what lies there now.
        *region.last_mut().expect("it is long") = f32::NAN;
        let mut filled = 1000;
        while filled < got.len() {
            filled += reader.read(&mut got[filled..]).expect("honest");
        }
        assert_eq!(writer.unsettled().expect("honest"), 0);
        assert!(got[..2] == *b"ab" && got[2..] == bytes(&region)[11..]);
    }

    #[test]
    fn what_the_other_end_cannot_open_is_copied() {
        let mut ends = ends();
        let pages = Arc::new(Pages::to_lend(RING_BYTES / 2).expect("memory"));
        let mut wrong = Notice::of(&pages).expect("this system has such memory");
        wrong.spoil();
        let wrong = bytemuck::bytes_of(&wrong);
        ends.0.put_head(Head::of(NOTICE, wrong.len()));
        ends.0.ring.put(wrong);
        ends.0.lent.push(Arc::clone(&pages));
        assert_eq!(write(&mut ends.0, &[b"x"]), 1);
        assert_eq!(ends.1.read(&mut [0; 2]).expect("a notice and a byte"), 1);
        let region = Region::new(pages);
        assert_eq!(write(&mut ends.0, &[bytes(&region)]), BITE_BYTES);
        assert_eq!(ends.0.unsettled().expect("honest"), 0);
        // The next one is told of by its own number.
        let mut rest = vec![1; BITE_BYTES];
        assert_eq!(ends.1.read(&mut rest).expect("honest"), BITE_BYTES);
        let right = lent(&mut ends, RING_BYTES);
        assert_eq!(write(&mut ends.0, &[bytes(&right)]), RING_BYTES);
    }

    #[test]
    fn a_record_of_no_bytes_is_refused() {
        for region in [0, 1, NOTICE] {
            let mut ends = ends();
            let pages = lent(&mut ends, LENT_BYTES_MIN);
            // Many of them, which a reader that passed them over would not return from in time.
            ends.0.put_head(Head::of(region, 0));
            ends.0.ring.put(bytes(&pages));
            ends.0.ring.publish();
            let refusal = ends.1.read(&mut [0]).expect_err("nothing writes such");
            assert_eq!(refusal.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn what_was_taken_back_is_an_error_for_who_comes_late() {
        let mut ends = ends();
        let region = lent(&mut ends, 2 * LENT_BYTES_MIN);
        let (writer, reader) = (&mut ends.0, &mut ends.1);
        let mut into = vec![0; LENT_BYTES_MIN];
        assert_eq!(write(writer, &[bytes(&region)]), 2 * LENT_BYTES_MIN);
        assert_eq!(reader.read(&mut into).expect("honest"), LENT_BYTES_MIN);
        writer.reclaim();
        reader.read(&mut into).expect_err("it may have changed");
        reader.read(&mut into).expect_err("nor is it passed over");
        reader.give_up();
        assert_eq!(reader.read(&mut into).expect("honest"), LENT_BYTES_MIN);
        // What follows is copied.
        assert_eq!(write(writer, &[bytes(&region)]), BITE_BYTES);
    }

    proptest! {
        /// Whatever the sizes of parts and of reads, and whether they were lent: bytes come as they went.
        #[test]
        fn bytes_come_in_order(
            parts in prop::collection::vec((0..3 * LENT_BYTES_MIN, any::<bool>()), 1..12),
            reads in prop::collection::vec(1..2 * LENT_BYTES_MIN, 1..8),
        ) {
            let mut ends = ends();
            let mut region = lent(&mut ends, 3 * LENT_BYTES_MIN);
            let (writer, reader) = (&mut ends.0, &mut ends.1);
            for (i, value) in region.iter_mut().enumerate() {
                *value = i as f32;
            }
            let own = bytes(&region).to_vec();
            let (mut due, mut got, mut reads) = (Vec::<u8>::new(), Vec::<u8>::new(), reads.iter().cycle());
            let mut read = |reader: &mut RecordReader| {
                let mut into = vec![0; *reads.next().expect("it has no end")];
                let count = reader.read(&mut into).expect("the writer is honest");
                got.extend(&into[..count]);
                count
            };
            for (length, is_lent) in parts {
                let from = if is_lent { bytes(&region) } else { &own };
                let mut written = 0;
                while written < length {
                    let parts = [&from[written..length.min(written + 5)], &from[length.min(written + 5)..length]];
                    written += write(writer, &parts);
                    read(reader);
                }
                due.extend(&from[..length]);
            }
            while read(reader) > 0 {}
            prop_assert!(got == due);
            prop_assert_eq!(writer.unsettled().expect("honest"), 0);
        }

        #[test]
        fn any_bytes_in_the_ring_are_read_without_panic(
            heads in prop::collection::vec((0..100_u32, prop_oneof![0..3_u32, Just(NOTICE), any::<u32>()], any::<u64>()), 1..8),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut ends = ends();
            lent(&mut ends, 50);
            for (length, region, offset) in heads {
                ends.0.put_head(Head { length, region, offset });
                ends.0.ring.put(&bytes);
            }
            ends.0.ring.publish();
            let mut into = [0; 64];
            while ends.1.read(&mut into).is_ok_and(|count| count > 0) {}
        }
    }
}
