//! `shoal run`: one completion on standard output, or a chat when there is no prompt and a terminal.

use std::io::{ErrorKind, IsTerminal, Read, Write};

use anyhow::{Result, bail};
use shoal_api::Options;
use shoal_api::chat::{Message, Role};
use shoal_api::completion::Prompt;
use shoal_cluster::{Cell, Placement};
use shoal_server::{Generator, TextEvent, TextStream};

use super::{cell, chat, model, runtime};
use crate::cli::{LogArgs, RunArgs};
use crate::model_file::ModelFile;
use crate::settings::Home;

pub(crate) fn run(args: &RunArgs, logs: &LogArgs) -> Result<()> {
    let prompt = prompt(args.prompt.as_deref())?;
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
        let cell = Cell::start(config, cell::program(logs, "warn")?, &home.run_root())?;
        let client = cell.client().clone();
        // A chat takes Ctrl-C itself, to cut a reply short.
        let interruptible = prompt.is_some();
        cell::with_cell(cell, interruptible, async |_| {
            let generator = Generator::new(client, text, generator_config);
            match prompt {
                None => chat::chat(&generator, &options).await,
                Some(prompt) if args.raw => {
                    print(generator.complete(Prompt::Text(prompt), options).await?).await
                }
                Some(prompt) => {
                    let message = Message::new(Role::User, prompt);
                    print(generator.chat(vec![message], options).await?).await
                }
            }
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

/// Writes the completion as it comes and nothing else. A reader that has had enough (`| head`) is no error.
async fn print(mut stream: TextStream) -> Result<()> {
    while let Some(event) = stream.next().await {
        let text = match event {
            TextEvent::Piece { text, .. } => text,
            TextEvent::Done(_) => "\n".to_owned(),
            TextEvent::Failed(error) => return Err(error.into()),
        };
        let mut out = std::io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            outcome => outcome?,
        }
    }
    Ok(())
}
