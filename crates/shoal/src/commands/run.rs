//! `shoal run`: one completion on standard output, or a chat when there is no prompt and a terminal.

use std::io::{IsTerminal, Read};

use anyhow::{Result, bail};
use shoal_api::Options;
use shoal_api::chat::{Message, Role};
use shoal_api::completion::Prompt;
use shoal_cluster::{Cell, Placement};
use shoal_server::{Generator, TextEvent, TextStream};

use super::{cell, chat, model, runtime};
use crate::cli::{LogArgs, RunArgs};
use crate::model_file::ModelFile;
use crate::progress::say;
use crate::settings::Home;
use crate::signals::Signals;

pub(crate) fn run(args: &RunArgs, logs: &LogArgs) -> Result<()> {
    let prompt = prompt(args.prompt.as_deref())?;
    if args.raw && prompt.is_none() {
        bail!("--raw completes a prompt, and there is none; give one as the last argument");
    }
    let home = Home::locate()?;
    let model = model::resolve(&home, &args.model)?;
    let file = ModelFile::open(&model.path)?;
    let placement = Placement::Local { nodes: args.nodes };
    let config = cell::config(&model, &file, placement, &args.cell)?;
    let generator_config = cell::generator_config(&config);
    let text = file.text()?;
    let options = Options {
        temperature: args.temperature,
        seed: args.seed,
        max_tokens: args.max_tokens,
        ..Options::default()
    };
    runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let cell = Cell::start(config, cell::program(logs, "warn")?, &home.run_root())?;
        let generator = Generator::new(cell.client().clone(), text, generator_config);
        let Some(prompt) = prompt else {
            let outcome = chat::chat(&cell, &generator, &options, &mut signals).await;
            cell::stop(cell).await?;
            return outcome;
        };
        cell::with_cell(cell, signals, async |_| {
            let stream = if args.raw {
                generator.complete(Prompt::Text(prompt), options).await?
            } else {
                let message = Message::new(Role::User, prompt);
                generator.chat(vec![message], options).await?
            };
            print(stream).await
        })
        .await
    })
}

/// The prompt given, or piped in; `None` when a person sits at the terminal.
fn prompt(given: Option<&str>) -> Result<Option<String>> {
    let prompt = match given {
        Some(prompt) => prompt.to_owned(),
        None if std::io::stdin().is_terminal() => return Ok(None),
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    if prompt.trim().is_empty() {
        bail!("the prompt is empty; give one as the last argument, or none at a terminal to chat");
    }
    Ok(Some(prompt))
}

/// Writes the completion as it comes and nothing else.
async fn print(mut stream: TextStream) -> Result<()> {
    while let Some(event) = stream.next().await {
        let text = match event {
            TextEvent::Piece { text, .. } => text,
            TextEvent::Done(_) => "\n".to_owned(),
            TextEvent::Failed(error) => return Err(error.into()),
        };
        if !say(&text)? {
            break;
        }
    }
    Ok(())
}
