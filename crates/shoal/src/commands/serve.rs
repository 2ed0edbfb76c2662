//! `shoal up` and `shoal serve`: a cell behind an OpenAI-compatible address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use shoal_cluster::{Cell, CellConfig, Placement, read_secret};
use shoal_server::{Generator, ModelText, ServerConfig};
use tokio::net::TcpListener;
use tracing::info;

use super::{cell, model, placement, runtime};
use crate::cli::{HttpArgs, LogArgs, ServeArgs, UpArgs};
use crate::model_file::ModelFile;
use crate::progress::say;
use crate::settings::Home;
use crate::signals::Signals;

pub(crate) fn up(args: &UpArgs, logs: &LogArgs) -> Result<()> {
    let placement = Placement::Local { nodes: args.nodes };
    start(&args.model, placement, &args.cell, &args.http, logs)
}

pub(crate) fn serve(args: &ServeArgs, logs: &LogArgs) -> Result<()> {
    if args.attach {
        return attach(args.model.as_deref(), &args.http, logs);
    }
    let model = args
        .model
        .as_deref()
        .expect("clap requires it without --attach");
    let placement = placement::of(&args.machines)?.unwrap_or(Placement::Local {
        nodes: args.nodes.unwrap_or(1),
    });
    start(model, placement, &args.cell, &args.http, logs)
}

fn start(
    model: &str,
    placement: Placement,
    cell_args: &crate::cli::CellArgs,
    http: &HttpArgs,
    logs: &LogArgs,
) -> Result<()> {
    let home = Home::locate()?;
    let server = server_config(http)?;
    // Before the model is fetched and loaded: a taken port should not cost minutes.
    let listener = bind(http)?;
    let model = model::resolve(&home, model)?;
    let file = ModelFile::open(&model.path)?;
    let config = cell::config(&model, &file, placement, cell_args)?;
    let program = cell::program(logs, "info")?;
    let text = file.text()?;
    runtime()?.block_on(async {
        let signals = Signals::catch()?;
        let cell = Cell::start(config.clone(), program, &home.run_root())?;
        serve_cell(cell, &config, text, (listener, server), http, signals).await
    })
}

fn attach(model: Option<&str>, http: &HttpArgs, logs: &LogArgs) -> Result<()> {
    let home = Home::locate()?;
    let server = server_config(http)?;
    let listener = bind(http)?;
    let program = cell::program(logs, "info")?;
    runtime()?.block_on(async {
        let signals = Signals::catch()?;
        let text_of = |config: &CellConfig| ModelFile::open(&config.model)?.text();
        let (cell, config, text) = Cell::attach(model, &program, &home.run_root(), text_of)?;
        serve_cell(cell, &config, text, (listener, server), http, signals).await
    })
}

/// Serves until a signal: HTTP from the first moment, answers from when the cell is ready.
async fn serve_cell(
    cell: Cell,
    config: &CellConfig,
    text: Arc<ModelText>,
    (listener, server): (std::net::TcpListener, ServerConfig),
    http: &HttpArgs,
    mut signals: Signals,
) -> Result<()> {
    let address = listener.local_addr()?;
    let generator = Generator::new(cell.client().clone(), text, cell::generator_config(config));
    let router = shoal_server::router(generator, server);
    info!(
        body_limit_bytes = http.body_limit,
        request_timeout_s = http.request_timeout,
        step_timeout_ms = config.step_timeout_ms,
        join_timeout_ms = config.join_timeout_ms,
        orphan_timeout_ms = config.orphan_timeout_ms,
        "front bounds"
    );
    let (stop_http, http_stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = TcpListener::from_std(listener)?;
    let mut serving = tokio::spawn(shoal_server::serve(listener, router, async {
        let _ = http_stopped.await;
    }));

    let outcome = tokio::select! {
        outcome = cell::ready(&cell) => match outcome.and_then(|_| announce(address, config, http)) {
            Ok(()) => {
                signals.any().await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        _ = signals.any() => Err(anyhow!("interrupted before the cell was ready")),
    };
    let _ = stop_http.send(());
    let served = tokio::select! {
        served = &mut serving => served,
        // Whoever asks twice does not wait for replies.
        _ = signals.any() => Ok(()),
    };
    cell::stop(cell).await?;
    served?;
    outcome
}

/// The line that scripts wait for, and one to try.
fn announce(address: SocketAddr, config: &CellConfig, http: &HttpArgs) -> Result<()> {
    let model = &config.model_name;
    let world = config.placement.world();
    let mut reachable = address;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => reachable.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => reachable.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let key = http
        .api_key_file
        .as_deref()
        .map_or_else(String::new, |file| {
            format!("-H \"authorization: Bearer $(cat {})\" ", file.display())
        });
    say(&format!(
        "ready http://{address} model={model} nodes={world}\n\
         try: curl http://{reachable}/v1/chat/completions {key}-H 'content-type: application/json' \
         -d '{{\"model\":\"{model}\",\"max_tokens\":64,\"messages\":[{{\"role\":\"user\",\"content\":\"Name three primary colors.\"}}]}}'\n"
    ))?;
    info!(%address, model, world, "serving");
    Ok(())
}

fn bind(http: &HttpArgs) -> Result<std::net::TcpListener> {
    let address = SocketAddr::new(http.host, http.port);
    let listener = std::net::TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "port {} of {} is in use; stop what uses it or choose another with --port",
                http.port,
                http.host
            )
        }
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!(
                "{} is not an address of this machine; choose another with --host",
                http.host
            )
        }
        _ => anyhow::Error::new(error).context(format!("listening on {address}")),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn server_config(http: &HttpArgs) -> Result<ServerConfig> {
    let api_key = http.api_key_file.as_deref().map(read_secret).transpose()?;
    if api_key.is_none() && !is_loopback(http.host) {
        bail!(
            "{} can be reached from other machines; protect it with --api-key-file FILE, or serve on 127.0.0.1",
            http.host
        );
    }
    Ok(ServerConfig {
        api_key,
        cors_origins: http.cors_origin.clone(),
        body_limit_bytes: http.body_limit,
        request_timeout: http
            .request_timeout
            .map(|seconds| Duration::from_secs(seconds.into())),
    })
}

fn is_loopback(host: IpAddr) -> bool {
    host.to_canonical().is_loopback()
}
