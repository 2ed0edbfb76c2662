//! Hosts with addresses of their own on one machine: network namespaces, joined by bridges in a namespace of its own.
//!
//! Nothing has a name outside: a namespace is held by a process that reads from this one, and ends with it, however that
//! ends. Each host also has its own host name, `/sys` and `/dev/shm`, so that ranks on two hosts share no memory.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Hosts on one network or several, each with an interface `eth0`, `eth1` and so on for each.
pub(crate) struct Network {
    switch: Namespace,
    hosts: Vec<Namespace>,
}

/// What breaks a network.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    /// A host's cable is pulled, the one to the first network.
    Cable(usize),
    /// The one to the second.
    SecondCable(usize),
    /// The second network passes nothing on; whoever is on it sees its cable well.
    SecondNetwork,
    /// What one host sends to another is lost, in this direction alone.
    Way { from: usize, to: usize },
}

/// A namespace, for as long as this lives.
struct Namespace(Child);

impl Network {
    /// Makes `hosts` hosts, or says why it cannot, aloud; with `SHOAL_REQUIRE_NETNS=1` that is a failure.
    pub(crate) fn of(hosts: usize) -> Option<Self> {
        Self::with_cables(hosts, 1)
    }

    /// The same, of hosts that are on so many networks.
    pub(crate) fn with_cables(hosts: usize, cables: usize) -> Option<Self> {
        match Self::make(hosts, cables) {
            Ok(network) => Some(network),
            Err(reason) => {
                assert!(
                    !is_required("SHOAL_REQUIRE_NETNS"),
                    "network namespaces are required, and there are none: {reason}"
                );
                eprintln!(
                    "SKIPPED, NOT TESTED: this machine has no network namespaces for us ({reason}); run as root"
                );
                None
            }
        }
    }

    fn make(hosts: usize, cables: usize) -> Result<Self, String> {
        let network = Self {
            switch: Namespace::new("switch")?,
            hosts: (0..hosts)
                .map(|host| Namespace::new(&format!("host{host}")))
                .collect::<Result<_, _>>()?,
        };
        for cable in 0..cables {
            network.lay(cable)?;
        }
        // The system tells of a link a moment after it is there.
        let is_up = |host: &Namespace| {
            (0..cables).all(|cable| {
                let state = format!("/sys/class/net/eth{cable}/operstate");
                let state = host.enter().args(["cat", &state]).output();
                state.is_ok_and(|state| state.stdout == b"up\n")
            })
        };
        crate::common::eventually("all links are up", || network.hosts.iter().all(is_up));
        Ok(network)
    }

    /// Joins the hosts by one more network.
    fn lay(&self, cable: usize) -> Result<(), String> {
        self.switch
            .run(&format!("ip link add br{cable} type bridge"))?;
        self.switch.run(&format!("ip link set br{cable} up"))?;
        for (at, host) in self.hosts.iter().enumerate() {
            let (pid, port) = (host.0.id(), Self::port(at, cable));
            self.switch.run(&format!(
                "ip link add {port} type veth peer name eth{cable} netns {pid}"
            ))?;
            self.switch
                .run(&format!("ip link set {port} master br{cable} up"))?;
            let ip = Self::ip_on(at, cable);
            host.run(&format!("ip address add {ip}/24 dev eth{cable}"))?;
            host.run(&format!("ip link set eth{cable} up"))?;
        }
        Ok(())
    }

    /// The address of a host on the first network.
    pub(crate) fn ip(host: usize) -> String {
        Self::ip_on(host, 0)
    }

    pub(crate) fn ip_on(host: usize, cable: usize) -> String {
        format!("10.77.{cable}.{}", host + 1)
    }

    /// The switch's end of a cable.
    fn port(host: usize, cable: usize) -> String {
        format!("port{host}-{cable}")
    }

    /// How many bytes a host has sent over one of its cables.
    pub(crate) fn bytes_sent(&self, host: usize, cable: usize) -> u64 {
        let count = format!("/sys/class/net/eth{cable}/statistics/tx_bytes");
        let output = self.hosts[host].enter().args(["cat", &count]).output();
        let count = String::from_utf8(output.expect("nsenter runs").stdout).expect("a number");
        count.trim().parse().expect("a number")
    }

    /// Makes `command` run on a host.
    pub(crate) fn on(&self, host: usize, command: &Command) -> Command {
        let mut inside = self.hosts[host].enter();
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.stdin(Stdio::null());
        inside
    }

    /// Does `work` on a host: sockets that it opens are the host's.
    pub(crate) fn inside<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.hosts[host].0.id());
        let namespace = std::fs::File::open(path).expect("its holder lives");
        // A namespace is entered by one thread.
        thread::scope(|scope| {
            let working = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).expect("we are root");
                work()
            });
            working
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Does harm to the network.
    pub(crate) fn harm(&self, harm: Harm) {
        match harm {
            Harm::Cable(host) => self.switch(host, 0, "down"),
            Harm::SecondCable(host) => self.switch(host, 1, "down"),
            Harm::SecondNetwork => self.switch.must("ip link set br1 down"),
            // Whatever one sends to the other goes to an address that nobody has.
            Harm::Way { from, to } => self.hosts[from].must(&format!(
                "ip neighbour replace {} lladdr 02:00:00:00:00:ff dev eth0 nud permanent",
                Self::ip(to)
            )),
        }
    }

    /// Undoes it.
    pub(crate) fn heal(&self, harm: Harm) {
        match harm {
            Harm::Cable(host) => self.switch(host, 0, "up"),
            Harm::SecondCable(host) => self.switch(host, 1, "up"),
            Harm::SecondNetwork => self.switch.must("ip link set br1 up"),
            Harm::Way { from, to } => {
                self.hosts[from].must(&format!("ip neighbour delete {} dev eth0", Self::ip(to)));
            }
        }
    }

    fn switch(&self, host: usize, cable: usize, state: &str) {
        let port = Self::port(host, cable);
        self.switch.must(&format!("ip link set {port} {state}"));
    }

    /// Bounds what every host sends over each of two cables.
    pub(crate) fn limit_all(&self, rate: &str) {
        for host in 0..self.hosts.len() {
            self.limit_on(host, 0, rate);
            self.limit_on(host, 1, rate);
        }
    }

    /// Bounds what a host sends.
    pub(crate) fn limit(&self, host: usize, rate: &str) {
        self.limit_on(host, 0, rate);
    }

    pub(crate) fn limit_on(&self, host: usize, cable: usize, rate: &str) {
        self.hosts[host].must(&format!(
            "tc qdisc replace dev eth{cable} root tbf rate {rate} burst 32kb latency 400ms"
        ));
    }

    /// Delays, loses or reorders what a host sends; says, aloud, when the system cannot, and with `SHOAL_REQUIRE_NETEM=1` fails.
    pub(crate) fn disturb(&self, host: usize, how: &str) -> bool {
        let disturbed =
            self.hosts[host].run(&format!("tc qdisc replace dev eth0 root netem {how}"));
        if let Err(reason) = &disturbed {
            assert!(!is_required("SHOAL_REQUIRE_NETEM"), "{how}: {reason}");
            eprintln!("SKIPPED, NOT TESTED: the network cannot be disturbed by {how} ({reason})");
        }
        disturbed.is_ok()
    }
}

impl Namespace {
    fn new(name: &str) -> Result<Self, String> {
        let script = format!(
            "mount -t tmpfs tmpfs /dev/shm && mount -t sysfs sysfs /sys && hostname {name} && ip link set lo up && echo up \
             && exec cat"
        );
        let held = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut held = Self(held.map_err(|error| format!("unshare: {error}"))?);
        let mut line = String::new();
        let stdout = held.0.stdout.as_mut().expect("stdout is piped");
        let _the_line_tells = BufReader::new(stdout).read_line(&mut line);
        if line.trim() == "up" {
            return Ok(held);
        }
        let mut reason = String::new();
        let stderr = held.0.stderr.as_mut().expect("stderr is piped");
        let _may_be_empty = std::io::Read::read_to_string(stderr, &mut reason);
        Err(reason.trim().to_owned())
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--uts", "--target"]);
        command.args([&self.0.id().to_string(), "--"]);
        command
    }

    fn run(&self, line: &str) -> Result<(), String> {
        let Output { status, stderr, .. } = self
            .enter()
            .args(line.split(' '))
            .output()
            .map_err(|error| format!("nsenter: {error}"))?;
        match status.success() {
            true => Ok(()),
            false => Err(format!(
                "`{line}`: {}",
                String::from_utf8_lossy(&stderr).trim()
            )),
        }
    }

    fn must(&self, line: &str) {
        self.run(line).expect("the network obeys");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its input ends here.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests have no configuration to be parsed"
)]
fn is_required(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}
