//! `shoal models`: what is in the store.

use anyhow::Result;
use serde::Serialize;
use shoal_cluster::store::{Leftover, LeftoverKind, StoredModel};

use crate::cli::{ModelsAction, ModelsArgs};
use crate::model_file;
use crate::progress::{megabytes, note, say};
use crate::settings::Home;

/// A row of the list. Its JSON form is for scripts.
#[derive(Serialize)]
struct Row {
    name: String,
    state: State,
    bytes: u64,
    format: &'static str,
    /// Of a model that is ready.
    quantisation: Option<String>,
    /// Of a model whose record can be read.
    source: Option<String>,
    path: String,
}

/// What can be done with a row.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It can be served.
    Ready,
    /// Its pull was interrupted, or goes on.
    Unfinished,
    /// It can be removed, or pulled anew.
    Damaged,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unfinished => "unfinished",
            Self::Damaged => "damaged",
        }
    }
}

impl From<StoredModel> for Row {
    fn from(stored: StoredModel) -> Self {
        let quantisation = model_file::quantisation(&stored.path).ok();
        Self {
            state: match quantisation {
                Some(_) => State::Ready,
                None => State::Damaged,
            },
            quantisation,
            name: stored.name,
            bytes: stored.bytes,
            format: FORMAT,
            source: Some(stored.source),
            path: stored.path.display().to_string(),
        }
    }
}

impl From<Leftover> for Row {
    fn from(leftover: Leftover) -> Self {
        Self {
            state: match leftover.kind {
                LeftoverKind::Unfinished => State::Unfinished,
                LeftoverKind::Damaged => State::Damaged,
            },
            quantisation: None,
            name: leftover.name,
            bytes: leftover.bytes,
            format: FORMAT,
            source: None,
            path: leftover.path.display().to_string(),
        }
    }
}

/// The only one yet.
const FORMAT: &str = "GGUF";

pub(crate) fn models(args: &ModelsArgs) -> Result<()> {
    let store = Home::locate()?.store()?;
    if let Some(ModelsAction::Rm { model }) = &args.action {
        let removed = store.remove(model)?;
        note(&format!(
            "removed {} ({})",
            removed.name,
            megabytes(removed.bytes)
        ));
        return Ok(());
    }
    let ready = store.list()?.into_iter().map(Row::from);
    let leftovers = store.leftovers()?.into_iter().map(Row::from);
    let mut rows: Vec<Row> = ready.chain(leftovers).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    print(&rows, args.json)
}

fn print(rows: &[Row], json: bool) -> Result<()> {
    if json {
        say(&format!("{}\n", serde_json::to_string(rows)?))?;
        return Ok(());
    }
    if rows.is_empty() {
        note("no models yet; fetch one with: shoal pull smollm2");
        return Ok(());
    }
    let mut table = format!(
        "{:<24} {:>12}  {:<10} {:<6} {:<8} SOURCE\n",
        "NAME", "SIZE", "STATE", "FORMAT", "QUANT"
    );
    for row in rows {
        table += &format!(
            "{:<24} {:>12}  {:<10} {:<6} {:<8} {}\n",
            row.name,
            megabytes(row.bytes),
            row.state.name(),
            row.format,
            row.quantisation.as_deref().unwrap_or("-"),
            row.source.as_deref().unwrap_or("-")
        );
    }
    say(&table)?;
    if rows.iter().any(|row| row.state != State::Ready) {
        note("what is not ready can be pulled again, or removed with: shoal models rm NAME");
    }
    Ok(())
}
