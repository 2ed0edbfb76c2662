//! A rank 0 that says what a test tells it to, over the real socket protocol.

use std::io::{BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use shoal_engine::client::{CellInfo, Client, Event, FinishReason, Limits, Place, Request, Timing};
use shoal_engine::wire::{self, Command, Greeting, Notice, Patience, Phase};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::{CONTEXT, END_TURN, MODEL};

/// A cell of two ranks whose rank 0 is the test.
pub(crate) struct Cell {
    pub(crate) client: Client,
    commands: Mutex<UnboundedReceiver<Command>>,
    socket: UnixStream,
    _folder: TempDir,
}

impl Cell {
    /// Starts a cell that answers each request with what `script` makes of it.
    pub(crate) fn new(script: impl Fn(&Request) -> Vec<Event> + Send + 'static) -> Self {
        Self::with_limits(4, 4, script)
    }

    /// A cell that starts on every request and then says nothing until the test does.
    pub(crate) fn silent() -> Self {
        Self::new(|_| Vec::new())
    }

    pub(crate) fn with_limits(
        running_max: usize,
        waiting_max: usize,
        script: impl Fn(&Request) -> Vec<Event> + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let path = folder.path().join("cell");
        let listener = UnixListener::bind(&path).expect("the socket is free");
        let (told, commands) = unbounded_channel();
        let (accepted, socket) = channel();
        let greeting = greeting(running_max, waiting_max);
        thread::spawn(move || {
            let (socket, _) = listener.accept().expect("the client connects");
            accepted
                .send(socket.try_clone().expect("a second handle"))
                .expect("the test waits");
            serve(socket, greeting, script, &told);
        });
        let client = Client::new();
        client
            .attach(&path, Instant::now() + PATIENCE)
            .expect("the cell greets");
        client.set_places(["here", "there"].map(place).into());
        Self {
            client,
            commands: Mutex::new(commands),
            socket: socket.recv().expect("the cell has accepted"),
            _folder: folder,
        }
    }

    /// Says something to the front.
    pub(crate) fn say(&self, notice: &Notice) {
        say(&self.socket, notice);
    }

    pub(crate) fn tell(&self, id: u64, event: Event) {
        self.say(&Notice::Event { id, event });
    }

    /// The process of rank 0 dies.
    pub(crate) fn die(&self) {
        self.socket
            .shutdown(std::net::Shutdown::Both)
            .expect("the socket is open");
    }

    /// Waits for the next request.
    pub(crate) async fn submitted(&self) -> (u64, Request) {
        loop {
            if let Command::Submit { id, request } = self.command().await {
                return (id, request);
            }
        }
    }

    /// Waits until a request is cancelled.
    pub(crate) async fn cancelled(&self) -> u64 {
        loop {
            if let Command::Cancel { id } = self.command().await {
                return id;
            }
        }
    }

    async fn command(&self) -> Command {
        let mut commands = self.commands.lock().await;
        let command = timeout(PATIENCE, commands.recv())
            .await
            .expect("a command comes in time");
        command.expect("the client is attached")
    }
}

/// The tokens of `text`, one a byte, and a normal end.
pub(crate) fn reply(text: &str) -> Vec<Event> {
    let mut events = tokens(text);
    events.push(finished(FinishReason::Stop));
    events
}

pub(crate) fn tokens(text: &str) -> Vec<Event> {
    text.bytes().map(|byte| Event::Token(byte.into())).collect()
}

pub(crate) fn finished(reason: FinishReason) -> Event {
    let timing = Timing {
        queue_ms: 1.0,
        prompt_ms: 100.0,
        generation_ms: 50.0,
        prompt_tokens: 0,
        generated_tokens: 0,
        cached_tokens: 1,
    };
    Event::Finished { reason, timing }
}

fn serve(
    mut socket: UnixStream,
    greeting: Notice,
    script: impl Fn(&Request) -> Vec<Event>,
    told: &UnboundedSender<Command>,
) {
    let mut reader = BufReader::new(socket.try_clone().expect("a second handle"));
    let mut frame = Vec::new();
    while wire::read_frame(&mut reader, &mut frame).is_ok() {
        let command = Command::decode(&frame).expect("the client speaks the protocol");
        match &command {
            Command::Hello { .. } => say(&socket, &greeting),
            Command::Submit { id, request } => {
                let mut frames = Vec::new();
                Notice::Started { id: *id }.encode(&mut frames);
                for event in script(request) {
                    Notice::Event { id: *id, event }.encode(&mut frames);
                }
                // The client may have hung up.
                let _ = socket.write_all(&frames);
            }
            _ => {}
        }
        if told.send(command).is_err() {
            return;
        }
    }
}

fn say(mut socket: &UnixStream, notice: &Notice) {
    let mut frame = Vec::new();
    notice.encode(&mut frame);
    socket.write_all(&frame).expect("the client is there");
}

fn greeting(running_max: usize, waiting_max: usize) -> Notice {
    Notice::Hello(Greeting {
        fabric: None,
        world: 2,
        model_name: MODEL.into(),
        phase: Phase::Ready(CellInfo {
            model_name: MODEL.into(),
            context: CONTEXT,
            vocabulary: END_TURN as usize + 1,
            world: 2,
            limits: Limits {
                waiting_max,
                running_max,
                batch_tokens_max: 64,
                kv_pages: 64,
                page_tokens: 16,
                context: CONTEXT,
            },
        }),
        patience: Patience {
            forming: Duration::from_secs(60),
            serving: Duration::from_secs(60),
        },
    })
}

const PATIENCE: Duration = Duration::from_secs(30);

fn place(machine: &str) -> Place {
    Place {
        machine: machine.to_owned(),
        pid: None,
    }
}
