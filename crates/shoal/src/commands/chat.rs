//! The interactive chat of `shoal run`: streaming, history, and a few commands.

use std::io::ErrorKind;

use anyhow::{Result, bail};
use rustyline::error::ReadlineError;
use shoal_api::Options;
use shoal_api::chat::{Message, Role};
use shoal_cluster::Cell;
use shoal_server::{Finished, GenerateError, Generator, TextEvent};

use super::cell;
use super::terminal::Terminal;
use crate::progress::{note, say};
use crate::signals::Signals;

/// Chats until `/quit`, the end of input, or a signal other than Ctrl-C, which cuts replies short.
pub(crate) async fn chat(
    cell: &Cell,
    generator: &Generator,
    options: &Options,
    signals: &mut Signals,
) -> Result<()> {
    tokio::select! {
        ready = cell::ready(cell) => ready?,
        _ = signals.any() => bail!("interrupted"),
    };
    note(&format!(
        "{} is listening; /help lists the commands",
        generator.model_name()
    ));
    let terminal = Terminal::open()?;
    let mut history: Vec<Message> = Vec::new();
    let mut last: Option<Finished> = None;
    loop {
        let line = tokio::select! {
            line = terminal.line() => line,
            () = signals.end() => return Ok(()),
        };
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                note("/quit or Ctrl-D to leave");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                note("that was not UTF-8; say it again");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => return Ok(()),
            "/help" => note(HELP),
            "/clear" => {
                history.clear();
                last = None;
                note("the conversation starts anew");
            }
            "/stats" => stats(last.as_ref(), history.len(), generator.context()),
            unknown if unknown.starts_with('/') => {
                note(&format!("{unknown} is not a command; /help lists them"));
            }
            said => {
                history.push(Message::new(Role::User, said));
                match answer(generator, &history, options, signals).await {
                    Ok(Reply::Said(text, finished)) => {
                        history.push(Message::new(Role::Assistant, text));
                        if let Some(finished) = finished {
                            if finished.usage.total_tokens >= u64::from(generator.context()) {
                                note("the context is full; /clear forgets the conversation");
                            }
                            last = Some(finished);
                        }
                    }
                    Ok(Reply::Leave) => return Ok(()),
                    Err(error) => {
                        // The question is taken back, so that it can be asked again.
                        history.pop();
                        note(&format!("{error:#}"));
                        if let Some(GenerateError::TooLong { .. }) = error.downcast_ref() {
                            note(
                                "/clear forgets the conversation; a larger --ctx makes room for a longer one",
                            );
                        }
                    }
                }
            }
        }
    }
}

/// How a reply ended.
enum Reply {
    /// It was said, as far as it goes; the figures are there if it is whole.
    Said(String, Option<Finished>),
    /// The chat is to end.
    Leave,
}

/// Streams one reply to standard output. Ctrl-C ends the reply, not the chat; another signal, or a reader that has left,
/// ends both.
async fn answer(
    generator: &Generator,
    history: &[Message],
    options: &Options,
    signals: &mut Signals,
) -> Result<Reply> {
    let mut stream = generator.chat(history.to_vec(), options.clone()).await?;
    let mut reply = String::new();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            interrupt = signals.any() => {
                say("\n")?;
                return Ok(if interrupt { Reply::Said(reply, None) } else { Reply::Leave });
            }
        };
        match event {
            Some(TextEvent::Piece { text, .. }) => {
                if !say(&text)? {
                    return Ok(Reply::Leave);
                }
                reply.push_str(&text);
            }
            Some(TextEvent::Done(finished)) => {
                say("\n")?;
                return Ok(Reply::Said(reply, Some(finished)));
            }
            Some(TextEvent::Failed(error)) => return Err(error.into()),
            None => return Ok(Reply::Said(reply, None)),
        }
    }
}

fn stats(last: Option<&Finished>, messages: usize, context: u32) {
    let Some(Finished {
        usage, performance, ..
    }) = last
    else {
        note(&format!(
            "nothing was said yet; the context holds {context} tokens"
        ));
        return;
    };
    note(&format!(
        "{messages} messages, {} of {context} tokens; last reply: {} tokens, {}, {}, first token {}",
        usage.total_tokens,
        usage.completion_tokens,
        rate("prompt", performance.prompt_tokens_per_second),
        rate("generation", performance.generation_tokens_per_second),
        performance
            .time_to_first_token_ms
            .map_or_else(|| "unknown".to_owned(), |ms| format!("after {ms:.0} ms"))
    ));
}

fn rate(what: &str, tokens_per_second: Option<f64>) -> String {
    tokens_per_second.map_or_else(
        || format!("{what} too short to time"),
        |rate| format!("{what} {rate:.1} tokens/s"),
    )
}

const HELP: &str = "\
/clear  forget the conversation
/stats  length of the conversation and speed of the last reply
/quit   leave (Ctrl-D too); Ctrl-C cuts a reply short
/help   this list";
