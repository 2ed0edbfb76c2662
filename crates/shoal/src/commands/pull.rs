//! `shoal pull`: fetch a model into the store.

use anyhow::Result;
use shoal_cluster::store::ModelRef;

use super::model;
use crate::cli::PullArgs;
use crate::model_file::ModelFile;
use crate::progress::note;
use crate::settings::Home;

pub(crate) fn pull(args: &PullArgs) -> Result<()> {
    let home = Home::locate()?;
    let reference: ModelRef = args.model.parse()?;
    if let Some(stored) = home.store()?.resolve(&reference)? {
        ModelFile::open(&stored.path)?;
        note(&format!(
            "{} is already here: {}",
            stored.name,
            stored.path.display()
        ));
        return Ok(());
    }
    let stored = model::fetch(&home, &reference)?;
    note(&format!(
        "next: shoal run --model {} \"Name three primary colors.\"",
        stored.name
    ));
    Ok(())
}
