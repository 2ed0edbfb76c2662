//! The terminal of a chat.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::{io, thread};

use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::sync::oneshot;

use crate::progress::say;

/// Reads lines, with editing and a history.
///
/// Reading has a thread of its own that nobody waits for: at a signal the chat leaves it where it is, at the prompt, and
/// puts the terminal back as it was.
pub(crate) struct Terminal {
    wanted: mpsc::Sender<oneshot::Sender<Result<String, ReadlineError>>>,
    reading: Arc<AtomicBool>,
    mode: Option<Termios>,
}

impl Terminal {
    /// Takes the terminal.
    pub(crate) fn open() -> Result<Self> {
        let mode = tcgetattr(io::stdin()).ok();
        let mut editor = DefaultEditor::new()?;
        let (wanted, asked) = mpsc::channel::<oneshot::Sender<_>>();
        let reading = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&reading);
        thread::Builder::new()
            .name("terminal".to_owned())
            .spawn(move || {
                for reply in asked {
                    flag.store(true, Ordering::SeqCst);
                    let line = editor.readline("> ");
                    flag.store(false, Ordering::SeqCst);
                    if let Ok(line) = &line
                        && !line.trim().is_empty()
                    {
                        let _ = editor.add_history_entry(line);
                    }
                    let _ = reply.send(line);
                }
            })?;
        Ok(Self {
            wanted,
            reading,
            mode,
        })
    }

    /// Reads a line.
    pub(crate) async fn line(&self) -> Result<String, ReadlineError> {
        let (reply, line) = oneshot::channel();
        if self.wanted.send(reply).is_err() {
            return Err(ReadlineError::Eof);
        }
        line.await.unwrap_or(Err(ReadlineError::Eof))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !self.reading.load(Ordering::SeqCst) {
            return;
        }
        if let Some(mode) = &self.mode {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, mode);
            // The editor has pasted text bracketed while it reads.
            let _ = say("\x1b[?2004l\n");
        }
    }
}
