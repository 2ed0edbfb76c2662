//! What a copy is measured against: bytes through bare TCP connections, and from file to file without any.

use super::{
    Sample,
    place::{FILE_BYTES, PIECE_BYTES, Place, Times, processor_seconds},
};
use anyhow::{Context, Result};
use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::FileExt,
    thread,
    time::Instant,
};

/// Where bytes come from, or go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// One piece of memory, again and again.
    Memory,
    File,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::File => "file",
        })
    }
}

/// Carries the file, or as many bytes, over connections between two threads each. Each connection has its part of the file.
pub(crate) fn measure(place: &Place, from: End, to: End, connections: u8) -> Result<Sample> {
    let source = open(from, || File::open(place.file()))?;
    let sink = open(to, || File::create(place.copied()))?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening")?;
    let part = FILE_BYTES / u64::from(connections);
    let turn = Turn::start();
    thread::scope(|scope| -> Result<()> {
        let mut ends = Vec::new();
        for number in 0..connections {
            let sender = TcpStream::connect(listener.local_addr()?)?;
            let (receiver, _) = listener.accept()?;
            let begin = u64::from(number) * part;
            let (source, sink) = (source.as_ref(), sink.as_ref());
            ends.push(scope.spawn(move || send(&sender, source, begin, part)));
            ends.push(scope.spawn(move || receive(&receiver, sink, begin, part)));
        }
        for end in ends {
            end.join().expect("no end panics").context("streaming")?;
        }
        Ok(())
    })?;
    Ok(turn.end())
}

/// Copies the file by reading and writing.
pub(crate) fn copy(place: &Place) -> Result<Sample> {
    let (source, sink) = (File::open(place.file())?, File::create(place.copied())?);
    let turn = Turn::start();
    let mut piece = vec![0; PIECE_BYTES];
    for at in (0..FILE_BYTES).step_by(PIECE_BYTES) {
        source.read_exact_at(&mut piece, at)?;
        sink.write_all_at(&piece, at)?;
    }
    Ok(turn.end())
}

fn open(end: End, file: impl FnOnce() -> io::Result<File>) -> Result<Option<File>> {
    match end {
        End::Memory => Ok(None),
        End::File => file().map(Some).context("opening a file of a stream"),
    }
}

fn send(mut to: &TcpStream, source: Option<&File>, begin: u64, bytes: u64) -> io::Result<()> {
    let mut piece = vec![1; PIECE_BYTES];
    for at in (begin..begin + bytes).step_by(PIECE_BYTES) {
        if let Some(file) = source {
            file.read_exact_at(&mut piece, at)?;
        }
        to.write_all(&piece)?;
    }
    to.shutdown(Shutdown::Write)
}

fn receive(mut from: &TcpStream, sink: Option<&File>, begin: u64, bytes: u64) -> io::Result<()> {
    let mut piece = vec![1; PIECE_BYTES];
    for at in (begin..begin + bytes).step_by(PIECE_BYTES) {
        from.read_exact(&mut piece)?;
        if let Some(file) = sink {
            file.write_all_at(&piece, at)?;
        }
    }
    Ok(())
}

/// The time of what this process does.
struct Turn {
    began: Instant,
    times: Option<Times>,
}

impl Turn {
    fn start() -> Self {
        Self {
            began: Instant::now(),
            times: processor_seconds("self"),
        }
    }

    fn end(self) -> Sample {
        let seconds = self.began.elapsed().as_secs_f64();
        let times = self.times.zip(processor_seconds("self"));
        Sample {
            seconds,
            processor_seconds: times.map(|(before, after)| after.own - before.own),
        }
    }
}
