//! `shoal fabric discover`: what this machine has to talk to others with, and how to link it with them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shoal_cluster::discover::{
    Cabling, Interface, Layout, Machine, MachineCommands, Over, Proposal, RdmaDevice, System,
    ThunderboltPort, Trap, apply, can_apply, dot, look, traps,
};
use shoal_cluster::hostfile::Hostfile;

use crate::cli::{DiscoverArgs, OverArg};
use crate::progress::{note, say};
use crate::settings;

pub(crate) fn discover(args: &DiscoverArgs) -> Result<()> {
    find(args).or_else(|error| {
        if args.json {
            say(&format!("{}\n", json!({"error": format!("{error:#}")})))?;
        }
        Err(error)
    })
}

fn find(args: &DiscoverArgs) -> Result<()> {
    if args.apply {
        can_apply()?;
    }
    let found = Found::by(args)?;
    if args.apply {
        // Before anything is changed on the machine.
        if let Some(path) = args.hostfile.as_ref().filter(|path| path.exists()) {
            bail!(
                "{} is there already; it is not written over",
                path.display()
            );
        }
        let own = &found.proposal()?.commands[0].commands;
        apply(own, |command| note(&format!("running {command}")))?;
    }
    if let Some(path) = &args.hostfile {
        found.proposal()?.hostfile.write(path)?;
    }
    if args.json {
        say(&format!("{}\n", serde_json::to_string(&found.printed())?))?;
    } else if args.dot {
        say(&dot(&found.machines, &found.cabling))?;
    } else {
        say(&found.text(args.hostfile.as_deref()))?;
    }
    Ok(())
}

/// This machine, the others, and what follows.
struct Found {
    /// This one comes first.
    machines: Vec<Machine>,
    cabling: Cabling,
    traps: Vec<Trap>,
    /// In words, where there is none.
    proposal: Result<Proposal, String>,
    /// In words, if `mlx.launch` started this process.
    launched: Option<String>,
}

/// The JSON form, which is a contract; `machine` alone is what `--from` reads.
#[derive(Serialize)]
struct Printed<'a> {
    machine: &'a Machine,
    /// The machines by name, this one first; cables go by their places in it.
    machines: Vec<&'a str>,
    cabling: &'a Cabling,
    warnings: &'a [Trap],
    layout: Option<Layout>,
    hostfile: Option<serde_json::Value>,
    commands: &'a [MachineCommands],
    notes: Vec<&'a str>,
    /// What `mlx.launch` said of this process, in words.
    launched: Option<&'a str>,
}

#[derive(Deserialize)]
struct Recording {
    machine: Machine,
}

impl Found {
    fn by(args: &DiscoverArgs) -> Result<Self> {
        let mut machines = vec![look(&args.sys)];
        for path in &args.from {
            machines.push(recording(path)?);
        }
        let over = args.over.map(|over| match over {
            OverArg::Thunderbolt => Over::Thunderbolt,
            OverArg::Ethernet => Over::Ethernet,
        });
        let launched = settings::launched().unwrap_or_else(|error| Some(error.to_string()));
        Ok(Self {
            launched,
            ..Self::among(machines, over)
        })
    }

    /// Says what follows from these machines.
    fn among(machines: Vec<Machine>, over: Option<Over>) -> Self {
        let cabling = Cabling::of(&machines);
        Self {
            traps: traps(&machines, &cabling),
            proposal: Proposal::of(&machines, &cabling, over).map_err(|error| error.to_string()),
            cabling,
            machines,
            launched: None,
        }
    }

    /// The proposal, for whoever cannot do without.
    fn proposal(&self) -> Result<&Proposal> {
        match &self.proposal {
            Ok(proposal) => Ok(proposal),
            Err(reason) => bail!("{reason}"),
        }
    }

    fn printed(&self) -> Printed<'_> {
        let proposal = self.proposal.as_ref();
        let notes = match proposal {
            Ok(proposal) => proposal.notes.iter().map(String::as_str).collect(),
            Err(reason) => vec![reason.as_str()],
        };
        let value = |hostfile: &Hostfile| {
            serde_json::from_str(&hostfile.to_text()).expect("a hostfile's text is JSON")
        };
        Printed {
            machine: &self.machines[0],
            machines: self.machines.iter().map(|it| it.name.as_str()).collect(),
            cabling: &self.cabling,
            warnings: &self.traps,
            layout: proposal.ok().map(|it| it.layout),
            hostfile: proposal.ok().map(|it| value(&it.hostfile)),
            commands: proposal.map_or(&[], |it| &it.commands),
            notes,
            launched: self.launched.as_deref(),
        }
    }

    fn text(&self, hostfile: Option<&Path>) -> String {
        let mut text = describe(&self.machines[0]);
        if let Some(launched) = &self.launched {
            text += &format!("\nstarted by mlx.launch: {launched}\n");
        }
        if self.machines.len() > 1 {
            text += &self.cables();
        }
        for Trap { machine, what, fix } in &self.traps {
            text += &format!("\nwarning: {machine}: {what}\n  - {fix}\n");
        }
        match &self.proposal {
            Ok(proposal) => text += &propose(proposal, hostfile),
            Err(reason) => text += &format!("\n{reason}\n"),
        }
        text
    }

    fn cables(&self) -> String {
        let mut text = "\ncables\n".to_owned();
        if self.cabling.cables.is_empty() {
            text += "  none between these machines\n";
        }
        for cable in &self.cabling.cables {
            let [one, other] = cable.ends.each_ref().map(|end| {
                let machine = &self.machines[end.machine].name;
                format!(
                    "{machine} {}",
                    socket(end.receptacle, end.interface.as_deref())
                )
            });
            text += &format!("  {one} – {other}{}\n", speed(cable.speed_gbit));
        }
        for (end, name) in &self.cabling.loose {
            let machine = &self.machines[end.machine].name;
            let socket = socket(end.receptacle, end.interface.as_deref());
            text += &format!("  {machine} {socket} – {name}, of which there is no recording\n");
        }
        text
    }
}

fn recording(path: &Path) -> Result<Machine> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the recording {}", path.display()))?;
    let recording: Recording = serde_json::from_str(&text).with_context(|| {
        let path = path.display();
        format!("{path} is not what `shoal fabric discover --json` prints; record it again on that machine")
    })?;
    Ok(recording.machine)
}

fn describe(machine: &Machine) -> String {
    let system = match machine.system {
        System::Linux => "Linux",
        System::Macos => "macOS",
    };
    let model = machine
        .model
        .as_deref()
        .map_or_else(String::new, |model| format!("{model}, "));
    let mut text = format!("{}, {model}{system}\n\ninterfaces\n", machine.name);
    text.extend(machine.interfaces.iter().map(interface));
    text += "\nRDMA devices\n";
    if machine.rdma.is_empty() {
        text += match machine.rdma_enabled {
            Some(false) => "  none: RDMA is disabled\n",
            _ => "  none\n",
        };
    }
    text.extend(machine.rdma.iter().map(rdma));
    if !machine.thunderbolt.is_empty() {
        text += "\nThunderbolt ports\n";
        text.extend(machine.thunderbolt.iter().map(port));
    }
    text
}

fn interface(it: &Interface) -> String {
    let state = if it.is_up { "up" } else { "down" };
    let mut facts = Vec::new();
    facts.extend(it.port.clone());
    facts.extend(it.speed_mbit.map(|speed| format!("{speed} Mbit/s")));
    facts.extend(it.mtu_bytes.map(|mtu| format!("MTU {mtu}")));
    facts.extend(it.addresses.iter().map(ToString::to_string));
    if !it.members.is_empty() {
        facts.push(format!("bridge of {}", it.members.join(" ")));
    }
    format!("  {:<12} {state:<5} {}\n", it.name, facts.join(", "))
}

fn rdma(it: &RdmaDevice) -> String {
    let interface = it.interface.as_deref().unwrap_or("no interface");
    let mut text = String::new();
    for port in &it.ports {
        let mut facts = vec![port.state.name().to_owned()];
        facts.extend(port.rate.clone());
        facts.extend(port.link_layer.clone());
        let facts = facts.join(", ");
        text += &format!(
            "  {:<12} port {} on {interface}: {facts}\n",
            it.name, port.number
        );
        for gid in &port.gids {
            let kind = gid
                .kind
                .as_deref()
                .map_or_else(String::new, |kind| format!(", {kind}"));
            text += &format!("               GID {}: {}{kind}\n", gid.index, gid.gid);
        }
    }
    if text.is_empty() {
        text = format!("  {:<12} no port\n", it.name);
    }
    text
}

fn port(it: &ThunderboltPort) -> String {
    let plugged = match (&it.peer, it.is_connected) {
        (Some(peer), _) => format!("to {}", peer.name),
        (None, true) => "to a device".to_owned(),
        (None, false) => "nothing plugged in".to_owned(),
    };
    let socket = socket(it.receptacle, it.interface.as_deref());
    format!("  {socket:<16} {plugged}{}\n", speed(it.speed_gbit))
}

/// `port 2 (en3)`
fn socket(receptacle: u16, interface: Option<&str>) -> String {
    match interface {
        Some(interface) => format!("port {receptacle} ({interface})"),
        None => format!("port {receptacle}"),
    }
}

fn speed(gbit: Option<u32>) -> String {
    gbit.map_or_else(String::new, |gbit| format!(", {gbit} Gb/s"))
}

fn propose(proposal: &Proposal, path: Option<&Path>) -> String {
    let layout = match proposal.layout {
        Layout::Mesh => "a cable between every two machines",
        Layout::Ring => "a ring of cables through all machines",
        Layout::Network => "a network that all machines are on",
    };
    let backend = proposal
        .hostfile
        .backend
        .map_or("", |backend| backend.name());
    let mut text = format!("\nproposal: {layout}; backend {backend}\n");
    for MachineCommands { machine, commands } in &proposal.commands {
        if !commands.is_empty() {
            text += &format!("\non {machine} (--apply runs them there):\n");
        }
        for words in commands {
            text += &format!("  sudo {}\n", words.join(" "));
        }
    }
    for note in &proposal.notes {
        text += &format!("\nnote: {note}\n");
    }
    match path {
        Some(path) => text += &format!("\nwritten: {}\n", path.display()),
        None => {
            text += &format!(
                "\nhostfile (--hostfile FILE writes it):\n{}",
                proposal.hostfile.to_text()
            )
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A Mac mini as its recording has it: RDMA on `en2`, whose port has `domain` and leads to `peer`.
    fn mac(name: &str, ip: &str, domain: &str, peer: &str) -> Value {
        json!({
            "name": name,
            "system": "macos",
            "model": "Mac mini",
            "interfaces": [
                {"name": "bridge0", "is_up": true, "members": ["en2", "en3"]},
                {"name": "en0", "port": "Ethernet", "is_up": true, "mtu_bytes": 1500, "addresses": [ip]},
                {"name": "en2", "port": "Thunderbolt 1", "is_up": true, "mtu_bytes": 1500},
            ],
            "rdma": [{
                "name": "rdma_en2",
                "interface": "en2",
                "ports": [{
                    "number": 1,
                    "state": "active",
                    "rate": "8X × 10.0 Gbps",
                    "link_layer": "Thunderbolt",
                    "gids": [{"index": 0, "gid": "fe80::1"}],
                }],
            }],
            "rdma_enabled": true,
            "thunderbolt": [
                {
                    "receptacle": 1, "interface": "en2", "domain": domain, "is_connected": true, "speed_gbit": 80,
                    "peer": {"name": "Mac mini", "domain": peer},
                },
                {"receptacle": 2, "interface": "en3", "domain": "-", "is_connected": false},
            ],
        })
    }

    #[test]
    fn two_cabled_macs_are_described_warned_of_and_linked() {
        let recordings = [
            mac("mac1.local", "192.168.1.14/24", "A", "B"),
            mac("mac2.local", "192.168.1.15/24", "B", "A"),
        ];
        let machines = recordings.map(|it| serde_json::from_value(it).unwrap());
        let found = Found::among(machines.into(), None);
        assert_eq!(found.text(None), include_str!("discover/two-macs.txt"));
        let printed = serde_json::to_value(found.printed()).unwrap();
        assert_eq!(printed["layout"], "mesh");
        assert_eq!(
            printed["hostfile"]["hosts"][1]["rdma"],
            json!(["rdma_en2", null])
        );
        assert_eq!(
            printed["commands"][0]["commands"][0],
            json!(["ifconfig", "bridge0", "down"])
        );
        let read: Recording = serde_json::from_value(printed).unwrap();
        assert_eq!(read.machine, found.machines[0]);
    }
}
