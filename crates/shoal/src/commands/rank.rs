//! `shoal rank`: one rank, configured by its parent over standard input.

use std::time::Duration;

use anyhow::{Context, Result};
use shoal_cluster::{RankLaunch, RoleLaunch, TaskLaunch, link_test};
use shoal_engine::{EngineLimits, RankConfig, Role, run_rank};
use shoal_fabric::{Rank, tcp};
use shoal_kernels::Isa;
use shoal_model::Shares;
use tracing::info_span;

use crate::cli::RankArgs;
use crate::settings;

pub(crate) fn rank(args: &RankArgs) -> Result<()> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .context("reading the rank's configuration")?;
    let launch: RankLaunch = serde_json::from_str(&line)
        .context("a rank is started by `shoal serve` or `shoal node`, which write its configuration to standard input")?;
    let _span = info_span!("rank", cell = args.cell, r = args.rank, world = args.world).entered();
    let links = settings::transport()?;
    match launch.task.clone() {
        TaskLaunch::Model(role) => run_rank(config(launch, role, links)?)?,
        TaskLaunch::LinkTest(role) => {
            link_test::run_rank(&launch, &role, &links, &mut std::io::stdout())?;
        }
    }
    Ok(())
}

fn config(launch: RankLaunch, role: RoleLaunch, links: tcp::Config) -> Result<RankConfig> {
    let key = launch.key()?;
    let role = match role {
        RoleLaunch::Member { rendezvous } => Role::Member { rendezvous },
        RoleLaunch::Root {
            model,
            model_name,
            socket,
            listen,
            shares,
            context,
            kv_format,
            exchange,
            running_max,
            waiting_max,
            batch_tokens_max,
            orphan_timeout_ms,
        } => Role::Root {
            model,
            model_name,
            socket,
            listen,
            shares: Shares::new(shares)?,
            context,
            kv_format,
            exchange,
            limits: EngineLimits {
                running_max,
                waiting_max,
                batch_tokens_max,
            },
            orphan_timeout: Duration::from_millis(orphan_timeout_ms),
        },
    };
    Ok(RankConfig {
        rank: Rank(launch.rank),
        world: launch.world.into(),
        key,
        links,
        role,
        threads: launch
            .threads
            .unwrap_or_else(shoal_kernels::machine::available_cores),
        isa: match launch.isa.as_deref() {
            Some(name) => Isa::parse(name)?,
            None => Isa::detect(),
        },
        first_core: launch.first_core,
        step_timeout: Duration::from_millis(launch.step_timeout_ms),
        join_timeout: Duration::from_millis(launch.join_timeout_ms),
    })
}
