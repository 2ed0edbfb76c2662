//! Pulls a model for real: `cargo run -p shoal-cluster --example pull -- STORE_FOLDER MODEL`.
#![forbid(unsafe_code)]

use std::{error::Error, path::PathBuf, time::Instant};

use shoal_cluster::store::{ModelRef, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(model)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull STORE_FOLDER MODEL".into());
    };
    let reference: ModelRef = model.parse()?;
    let store = Store::open(PathBuf::from(root))?;
    let start = Instant::now();
    let stored = store.pull(&reference, &mut |done_bytes, total_bytes| {
        eprintln!(
            "{:6.2} s  {done_bytes} of {total_bytes:?} bytes",
            start.elapsed().as_secs_f64()
        );
    })?;
    eprintln!("{:6.2} s  {stored:#?}", start.elapsed().as_secs_f64());
    Ok(())
}
