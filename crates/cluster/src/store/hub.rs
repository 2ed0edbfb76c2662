//! Models in the repositories of a hub.
//!
//! The `hf-hub` crate says where things are and asks for them: endpoint, token, revisions, addresses, the client. Its
//! own download is not used: it waits without a deadline, goes on only from whole chunks of 10 MB, checks no checksum,
//! and leaves its tasks running when one fails. So the bytes are fetched here, over its client, to a file that goes on
//! at the very byte where it stopped. The client drops the token when it is sent on to another host.

mod choice;
mod config;
mod headers;

pub use config::HubConfig;

use std::{fs, path::Path, thread};

use hf_hub::{
    Cache, Repo, RepoType,
    api::tokio::{Api, ApiBuilder, ApiRepo},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::{
    Fetched,
    error::{Doing, StoreError},
    part::{Part, Space},
    reference::HubSource,
    workspace::remove_folder,
};
use headers::{ContentRange, sha256_of};

/// Fetches the file that `source` means into `folder`, going on from what an earlier fetch of the same file left there.
pub(super) fn fetch(
    source: &HubSource,
    config: &HubConfig,
    folder: &Path,
    space: Space,
    progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
) -> Result<Fetched, StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing("starting a download to", folder)?;
    let session = Session::new(source, config, folder)?;
    // On a thread of its own, which also ends the runtime: the caller's may be one of a runtime, which must not block.
    let done = thread::scope(|scope| {
        let fetching =
            scope.spawn(move || runtime.block_on(session.fetch(folder, space, progress)));
        fetching.join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// One fetch.
struct Session<'a> {
    source: &'a HubSource,
    config: &'a HubConfig,
    api: Api,
}

/// What the hub says of a repository at one revision.
#[derive(Deserialize)]
struct Listing {
    /// The commit.
    sha: String,
    siblings: Vec<Sibling>,
}

/// One file of a repository.
#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    /// Of large files only.
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

/// Why an attempt failed.
enum Trouble {
    /// Another attempt may do better.
    Passing(String),
    /// It will not.
    Lasting(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Lasting(error)
    }
}

impl<'a> Session<'a> {
    fn new(
        source: &'a HubSource,
        config: &'a HubConfig,
        folder: &Path,
    ) -> Result<Self, StoreError> {
        // The cache is never used; naming one keeps the crate from looking for the user's, and for a token beside it.
        let mut builder = ApiBuilder::from_cache(Cache::new(folder.join("unused")))
            .with_token(config.token.clone())
            .with_progress(false);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(|error| StoreError::Hub {
            source_text: source.to_string(),
            reason: reason(&error),
        })?;
        Ok(Self {
            source,
            config,
            api,
        })
    }

    async fn fetch(
        &self,
        folder: &Path,
        space: Space,
        progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
    ) -> Result<Fetched, StoreError> {
        let listing = self.listing().await?;
        let names: Vec<String> = listing
            .siblings
            .iter()
            .map(|it| it.rfilename.clone())
            .collect();
        let file = choice::choose(&names, self.source)?;
        if self.source.file.is_none() {
            tracing::info!(source = %self.source, file, "chose a file");
        }
        let sibling = listing.siblings.iter().find(|it| it.rfilename == file);
        let promised = sibling
            .and_then(|it| it.lfs.as_ref())
            .and_then(|lfs| sha256_of(&lfs.sha256));

        // The name holds what the bytes are of, so that no fetch goes on from another file's bytes.
        let origin = Sha256::digest(format!("{}/{}/{file}", self.source.repo, listing.sha));
        let path = folder.join(hex::encode(origin));
        clear_others(folder, &path)?;
        let mut part = Part::open(path)?;
        let url = self.repo(&listing.sha).url(&escaped(file));
        let checksum = self.download(&url, &mut part, space, progress).await?;

        let finished = part.finish()?;
        let actual = hex::encode(finished.sha256);
        let expected = promised.or(checksum);
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            fs::remove_file(&finished.path).doing("removing", &finished.path)?;
            let source_text = self.source.to_string();
            return Err(StoreError::Checksum {
                source_text,
                expected,
                actual,
            });
        }
        Ok(Fetched {
            finished,
            source: self.source.at(file).to_string(),
            revision: Some(listing.sha),
        })
    }

    /// Asks for the repository's files, their checksums and the commit they are of.
    async fn listing(&self) -> Result<Listing, StoreError> {
        let revision = self.source.revision.as_deref().unwrap_or("main");
        let repo = self.repo(revision);
        let mut failures = 0;
        loop {
            let attempt = async {
                let request = repo.info_request().query(&[("blobs", "true")]);
                let response = request
                    .send()
                    .await
                    .map_err(|error| passing(&error.without_url()))?;
                self.check(response.status().as_u16())?;
                response
                    .json()
                    .await
                    .map_err(|error| passing(&error.without_url()))
            };
            match self.within(attempt).await {
                Ok(listing) => return Ok(listing),
                Err(trouble) => self.pause(trouble, &mut failures).await?,
            }
        }
    }

    /// Fetches what is still missing from `part`, however often the connection breaks. Returns the checksum the hub
    /// gave with the bytes, if any.
    async fn download(
        &self,
        url: &str,
        part: &mut Part,
        space: Space,
        progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
    ) -> Result<Option<String>, StoreError> {
        let mut failures = 0;
        loop {
            let before = part.bytes();
            match self.attempt(url, part, space, progress).await {
                Ok(checksum) => return Ok(checksum),
                Err(trouble) => {
                    if part.bytes() > before {
                        failures = 0;
                    }
                    self.pause(trouble, &mut failures).await?;
                }
            }
        }
    }

    async fn attempt(
        &self,
        url: &str,
        part: &mut Part,
        space: Space,
        progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
    ) -> Result<Option<String>, Trouble> {
        let range = format!("bytes={}-", part.bytes());
        let request = self.api.client().get(url).header("range", range);
        let sending = async {
            request
                .send()
                .await
                .map_err(|error| passing(&error.without_url()))
        };
        let mut response = self.within(sending).await?;
        let header = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let checksum = header("x-linked-etag")
            .or_else(|| header("etag"))
            .and_then(|it| sha256_of(&it));
        let status = response.status().as_u16();
        let range = header("content-range").and_then(|it| ContentRange::parse(&it));
        let total_bytes = match (status, range) {
            (
                206,
                Some(ContentRange {
                    start: Some(start),
                    total,
                }),
            ) if start == part.bytes() => total,
            // Nothing lies beyond the end: the file is whole, or what is here is of no use.
            (416, Some(ContentRange { total, .. })) if total == part.bytes() => {
                return Ok(checksum);
            }
            (206 | 416, _) => {
                part.restart()?;
                return Err(Trouble::Passing(format!(
                    "it answered a range wrongly ({status})"
                )));
            }
            (200, _) => {
                part.restart()?;
                let length = response.content_length();
                length.ok_or_else(|| self.failed("it does not say how long the file is"))?
            }
            _ => {
                self.check(status)?;
                return Err(self.failed(format!("it answered {status}")).into());
            }
        };
        let folder = part.path().parent().expect("a part lies in a workspace");
        space.require(folder, total_bytes.saturating_sub(part.bytes()))?;
        progress(part.bytes(), Some(total_bytes));
        loop {
            let chunk = async {
                response
                    .chunk()
                    .await
                    .map_err(|error| passing(&error.without_url()))
            };
            let Some(chunk) = self.within(chunk).await? else {
                break;
            };
            part.append(&chunk)?;
            progress(part.bytes(), Some(total_bytes));
        }
        if part.bytes() != total_bytes {
            let text = format!("it ended after {} of {total_bytes} bytes", part.bytes());
            return Err(Trouble::Passing(text));
        }
        Ok(checksum)
    }

    fn repo(&self, revision: &str) -> ApiRepo {
        let repo = self.source.repo.clone();
        self.api.repo(Repo::with_revision(
            repo,
            RepoType::Model,
            revision.to_owned(),
        ))
    }

    /// Bounds a wait for the hub.
    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let limit = self.config.stall_timeout;
        let late = || Trouble::Passing(format!("it sent nothing for {} s", limit.as_secs_f64()));
        timeout(limit, answer).await.unwrap_or_else(|_| Err(late()))
    }

    /// Waits for another attempt, or gives up.
    async fn pause(&self, trouble: Trouble, failures: &mut u32) -> Result<(), StoreError> {
        let text = match trouble {
            Trouble::Lasting(error) => return Err(error),
            Trouble::Passing(text) => text,
        };
        *failures += 1;
        if *failures >= self.config.failures_max {
            return Err(self.failed(text));
        }
        tracing::warn!(source = %self.source, reason = text, "the download was interrupted and goes on");
        sleep(self.config.retry_pause * 2_u32.saturating_pow(*failures - 1)).await;
        Ok(())
    }

    /// Sorts the statuses of failures; the others are fine.
    fn check(&self, status: u16) -> Result<(), Trouble> {
        let source_text = self.source.to_string();
        let error = match status {
            401 | 403 => StoreError::Denied {
                source_text,
                status,
                // The hub says 401 of what does not exist, too, so as not to tell strangers what does.
                advice: match self.config.token {
                    None => {
                        "check the name; if access to it is granted on request, get that and set HF_TOKEN"
                    }
                    Some(_) => {
                        "check the name, and that the account of HF_TOKEN was granted access"
                    }
                },
            },
            404 => StoreError::NotFound(source_text),
            408 | 429 | 500.. => return Err(Trouble::Passing(format!("it answered {status}"))),
            400.. => self.failed(format!("it answered {status}")),
            _ => return Ok(()),
        };
        Err(error.into())
    }

    fn failed(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Hub {
            source_text: self.source.to_string(),
            reason: reason.into(),
        }
    }
}

/// Escapes what would end the path of an address.
fn escaped(file: &str) -> String {
    let file = file.replace('%', "%25");
    file.replace('?', "%3F").replace('#', "%23")
}

/// Removes what fetches of other files left.
fn clear_others(folder: &Path, kept: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(folder).doing("reading", folder)? {
        let path = entry.doing("reading", folder)?.path();
        if path == kept {
            continue;
        }
        if path.is_dir() {
            remove_folder(&path)?;
        } else {
            fs::remove_file(&path).doing("removing", &path)?;
        }
    }
    Ok(())
}

/// Takes errors without their address, which may hold a signature that is as good as a token.
fn passing(error: &dyn std::error::Error) -> Trouble {
    Trouble::Passing(reason(error))
}

/// Writes an error and what it was caused by in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_stay_in_the_path() {
        assert_eq!(escaped("a b/50%#1?.gguf"), "a b/50%25%231%3F.gguf");
    }
}
