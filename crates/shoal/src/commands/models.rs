//! `shoal models`: what is in the store.

use anyhow::Result;
use serde::Serialize;

use crate::cli::{ModelsAction, ModelsArgs};
use crate::model_file;
use crate::progress::megabytes;
use crate::settings::Home;

/// A row of the list. Its JSON form is for scripts.
#[derive(Serialize)]
struct Row {
    name: String,
    bytes: u64,
    format: &'static str,
    quantisation: String,
    source: String,
    path: String,
}

pub(crate) fn models(args: &ModelsArgs) -> Result<()> {
    let store = Home::locate()?.store()?;
    if let Some(ModelsAction::Rm { model }) = &args.action {
        let removed = store.remove(model)?;
        eprintln!("removed {} ({})", removed.name, megabytes(removed.bytes));
        return Ok(());
    }
    let rows: Vec<Row> = store
        .list()?
        .into_iter()
        .map(|stored| Row {
            // A damaged file is still listed, so that it can be removed.
            quantisation: model_file::quantisation(&stored.path)
                .unwrap_or_else(|_| "damaged".to_owned()),
            name: stored.name,
            bytes: stored.bytes,
            format: "GGUF",
            source: stored.source,
            path: stored.path.display().to_string(),
        })
        .collect();
    print(&rows, args.json)
}

#[expect(clippy::print_stdout, reason = "the list is this command's output")]
fn print(rows: &[Row], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(rows)?);
        return Ok(());
    }
    if rows.is_empty() {
        eprintln!("no models yet; fetch one with: shoal pull smollm2");
        return Ok(());
    }
    println!(
        "{:<24} {:>12}  {:<6} {:<8} SOURCE",
        "NAME", "SIZE", "FORMAT", "QUANT"
    );
    for row in rows {
        println!(
            "{:<24} {:>12}  {:<6} {:<8} {}",
            row.name,
            megabytes(row.bytes),
            row.format,
            row.quantisation,
            row.source
        );
    }
    Ok(())
}
