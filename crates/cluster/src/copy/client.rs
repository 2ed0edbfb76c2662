//! The side of a copy that a person starts.

use std::path::{Path, PathBuf};

use shoal_fabric::tcp::Config;
use shoal_fabric::{Key, Transport};

use super::connect::{Terms, session};
use super::error::{CopyError, Doing};
use super::limit::Limit;
use super::path::RelPath;
use super::receiver::{self, Receiving};
use super::sender::{self, Sending};
use super::source::Source;
use super::wire::{CopyOrder, Destination, PullOrder, PushOrder};
use super::{CopyReport, OnProgress};
use crate::carrier::Carrier;
use crate::store::free_bytes;

/// How to copy.
pub struct CopyConfig {
    /// Secret that the nodes were started with.
    pub token: Key,
    /// Data connections, [`LANES_MAX`](super::LANES_MAX) at most; over several cables as many more as make it the same number
    /// for each. Over RDMA there is one.
    pub lanes: u8,
    /// What may carry them.
    pub carrier: Carrier,
    /// How ranks of this machine are linked, of which RDMA and the interfaces hold here too.
    pub links: Config,
    /// Most bytes a second that leave any machine.
    pub limit_bytes_per_second: Option<u64>,
    /// Read again what was written before it gets its name.
    pub verify: bool,
}

impl CopyConfig {
    fn terms(&self) -> Terms<'_> {
        Terms {
            token: &self.token,
            links: &self.links,
            carrier: self.carrier,
        }
    }
}

/// What has been copied.
#[derive(Debug)]
pub struct CopySummary {
    /// Bytes of all files.
    pub total_bytes: u64,
    /// What nobody can copy: sockets, devices and the like.
    pub left_out: Vec<String>,
    /// What each receiving end says, in the order of the nodes.
    pub reports: Vec<CopyReport>,
    /// What carried the bytes between this machine and the first node.
    pub transport: Transport,
    /// Over how many cables.
    pub cables: usize,
}

/// Sends files and folders of this machine to the first of `nodes`, and through it to the others. `to` is a path below
/// the folder that each of them serves; with a `/` at its end it is a folder to put the sources into.
///
/// # Errors
/// [`CopyError`] when the first node does not have everything; what happened to the others is in the summary.
pub fn push(
    config: &CopyConfig,
    sources: &[PathBuf],
    nodes: &[String],
    to: &str,
    on_progress: OnProgress<'_>,
) -> Result<CopySummary, CopyError> {
    let (node, then) = nodes
        .split_first()
        .ok_or_else(|| CopyError::path(to, "no node is given"))?;
    let destination = Destination {
        path: RelPath::parse(to).map_err(|why| CopyError::path(to, why))?,
        is_folder: to.ends_with('/'),
        verify: config.verify,
    };
    let source = Source::local(sources)?;
    let session = session();
    let order = CopyOrder::Push(PushOrder {
        session: session.clone(),
        lanes: config.lanes,
        to: destination,
        limit_bytes_per_second: config.limit_bytes_per_second,
        carrier: config.carrier,
        then: then.to_vec(),
    });
    let link = config
        .terms()
        .connect(node, &session, config.lanes, order)?;
    let sending = Sending {
        source: &source,
        limit: config.limit_bytes_per_second.map(Limit::new),
        on_progress,
    };
    let reports = sender::run(&link.talk, link.lanes, &sending)?;
    Ok(CopySummary {
        total_bytes: source.manifest.bytes(),
        left_out: source.left_out,
        reports,
        transport: link.transport,
        cables: link.cables,
    })
}

/// Fetches files and folders of a node to `to` on this machine.
///
/// # Errors
/// [`CopyError`] when not everything is here.
pub fn pull(
    config: &CopyConfig,
    node: &str,
    from: &[RelPath],
    to: &Path,
    on_progress: OnProgress<'_>,
) -> Result<CopySummary, CopyError> {
    let (base, destination) = local_destination(to, from.len(), config.verify)?;
    let session = session();
    let order = CopyOrder::Pull(PullOrder {
        session: session.clone(),
        lanes: config.lanes,
        from: from.to_vec(),
        limit_bytes_per_second: config.limit_bytes_per_second,
    });
    let link = config
        .terms()
        .connect(node, &session, config.lanes, order)?;
    let names = from
        .iter()
        .filter_map(|path| Some(path.split_last()?.1.to_owned()));
    let receiving = Receiving {
        names: Some(names.collect()),
        base: &base,
        destination: &destination,
        free_bytes,
        on_progress,
    };
    let received = receiver::run(&link.talk, link.lanes, &receiving, |_| None)?;
    Ok(CopySummary {
        total_bytes: received.total_bytes,
        left_out: received.left_out,
        reports: received.reports,
        transport: link.transport,
        cables: link.cables,
    })
}

/// Finds the folder that must be there, and the path below it. Links on the way to the destination are this machine's own.
fn local_destination(
    to: &Path,
    sources: usize,
    verify: bool,
) -> Result<(PathBuf, Destination), CopyError> {
    let is_folder = to.as_os_str().as_encoded_bytes().ends_with(b"/") || sources > 1;
    if is_folder {
        std::fs::create_dir_all(to).doing("making the folder", to.display())?;
    }
    let destination = |path| Destination {
        path,
        is_folder,
        verify,
    };
    if to.is_dir() {
        return Ok((to.to_owned(), destination(RelPath::default())));
    }
    let unnamed = || {
        CopyError::path(
            to.display(),
            "is no name for a file; name the file or a folder that is there",
        )
    };
    let name = to
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(unnamed)?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    let path =
        RelPath::try_from(name.to_owned()).map_err(|why| CopyError::path(to.display(), why))?;
    Ok((
        folder.unwrap_or(Path::new(".")).to_owned(),
        destination(path),
    ))
}
