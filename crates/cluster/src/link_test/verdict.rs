//! What the figures mean, in words.

use serde::Serialize;

use super::BANDWIDTH_BYTES_MIN;
use super::report::{LinkReport, Report};

/// What a person should make of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The short form.
    pub grade: Grade,
    /// What kind of link it looks like.
    pub link: String,
    /// The finding, in one sentence.
    pub summary: String,
    /// The likeliest causes of what is not well and what to do, the likeliest first.
    pub advice: Vec<String>,
}

/// How the links are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Whole, and as fast as their kind.
    Healthy,
    /// Whole, and slower than their kind.
    Slow,
    /// Data was damaged.
    Faulty,
}

/// Whether bytes leave the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// All ranks run here.
    ThisMachine,
    /// The ranks are on several machines.
    Network,
}

impl Verdict {
    /// Judges what was found.
    #[must_use]
    pub fn of(report: &Report, place: Place) -> Self {
        let kind = Kind::of(report, place);
        if let Some(fault) = report.faults().next() {
            return Self {
                grade: Grade::Faulty,
                link: kind.name.to_owned(),
                summary: format!("data was damaged on its way: {fault}"),
                advice: FAULTY.iter().map(|&it| it.to_owned()).collect(),
            };
        }
        match place {
            Place::ThisMachine => here(report, &kind),
            Place::Network => network(report, &kind),
        }
    }
}

/// A kind of link and what it carries.
struct Kind {
    name: &'static str,
    /// TCP payload each way at the kind's rate; none when nothing large was sent.
    line_gb_per_s: Option<f64>,
}

impl Kind {
    /// The slowest kind that can have carried the best that was seen.
    fn of(report: &Report, place: Place) -> Self {
        let links = &report.links;
        let any = |transport: &str| links.iter().any(|link| link.transport == transport);
        let name = match place {
            // Two of the ranks may share a machine; the network is what joins the others.
            Place::Network if any(TCP) => None,
            Place::ThisMachine if any(SHARED_MEMORY) => Some(SHARED_MEMORY),
            // What RDMA should carry depends on the device, and MPI on what it has chosen, which nobody tells.
            _ if any(RDMA) => Some(RDMA),
            _ if any(MPI) => Some(MPI),
            Place::ThisMachine => Some("loopback"),
            Place::Network => Some(SHARED_MEMORY),
        };
        if let Some(name) = name {
            return Self {
                name,
                line_gb_per_s: None,
            };
        }
        let over_tcp = links.iter().filter(|link| link.transport == TCP);
        let best = rates(over_tcp).fold(0.0, f64::max);
        let carries = |(_, line): &&(&str, f64)| best <= line * 1.03;
        match KINDS.iter().find(carries) {
            _ if best == 0.0 => Self {
                name: "network",
                line_gb_per_s: None,
            },
            Some(&(name, line)) => Self {
                name,
                line_gb_per_s: Some(line),
            },
            None => Self {
                name: "faster than 25 GbE",
                line_gb_per_s: None,
            },
        }
    }
}

fn here(report: &Report, kind: &Kind) -> Verdict {
    let worst = rates(report.links.iter()).reduce(f64::min);
    let name = kind.name;
    let (grade, summary) = match worst {
        None => (
            Grade::Healthy,
            format!("{name} is whole; no message was large enough to show its bandwidth"),
        ),
        Some(rate) if rate < LOCAL_LOW => (
            Grade::Slow,
            format!("{name} is whole and slow: {rate:.2} GB/s where {LOCAL_USUAL} are usual"),
        ),
        Some(rate) => (
            Grade::Healthy,
            format!("{name} is healthy: at least {rate:.2} GB/s each way on every link"),
        ),
    };
    let advice = if grade == Grade::Slow { BUSY } else { &[] };
    verdict(grade, kind, summary, advice)
}

fn network(report: &Report, kind: &Kind) -> Verdict {
    let round_trip = |link: &LinkReport| link.round_trip_4kib_us.median;
    let far = report.links.iter().find(|link| round_trip(link) > LAN_US);
    if let Some(link) = far {
        let (ms, LinkReport { from, to, .. }) = (round_trip(link) / 1e3, link);
        let summary = format!(
            "the link between rank {from} and rank {to} is whole and answers late: {ms:.1} ms for a round trip of 4 KiB where a cable takes less than {:.1} ms",
            LAN_US / 1e3
        );
        return verdict(Grade::Slow, kind, summary, LATE);
    }
    let by_rate = |a: &&LinkReport, b: &&LinkReport| lower_rate(a).total_cmp(&lower_rate(b));
    let large = |transport: &'static str| {
        let links = report.links.iter().filter(|link| is_large(link));
        links.filter(move |link| link.transport == transport)
    };
    // Memory is no link between machines, and each machine's has its own rate.
    for transport in [TCP, RDMA] {
        if let Some(slowest) = large(transport).min_by(by_rate)
            && let Some(fastest) = large(transport).max_by(by_rate)
            && lower_rate(slowest) < UNEVEN * lower_rate(fastest)
        {
            let LinkReport { from, to, .. } = slowest;
            let summary = format!(
                "the link between rank {from} and rank {to} is whole and slower than the others: {:.3} GB/s where the best has {:.3}",
                lower_rate(slowest),
                lower_rate(fastest)
            );
            return verdict(Grade::Slow, kind, summary, LOW);
        }
    }
    let slowest = |transport: &'static str| large(transport).min_by(by_rate);
    let transports = [TCP, RDMA, MPI, SHARED_MEMORY];
    let Some(slowest) = transports.into_iter().find_map(slowest) else {
        let summary = "the links are whole; no message was large enough to show their bandwidth";
        return verdict(Grade::Healthy, kind, summary.to_owned(), &[]);
    };
    let rate = lower_rate(slowest);
    let each = match slowest.cables {
        1 => String::new(),
        cables => format!(" on the fastest of {cables} cables"),
    };
    let Some(line) = kind.line_gb_per_s else {
        let summary = format!("the links are healthy: {rate:.2} GB/s each way{each}");
        return verdict(Grade::Healthy, kind, summary, &[]);
    };
    let (name, percent) = (kind.name, 100.0 * rate / line);
    if rate < FULL * line {
        let summary = format!(
            "the links are whole and slow: {rate:.3} GB/s{each}, too fast for the next slower kind and {percent:.0} % of {name}"
        );
        return verdict(Grade::Slow, kind, summary, LOW);
    }
    let summary = format!(
        "the links are healthy for {name}: {rate:.3} GB/s each way{each}, {percent:.0} % of what it carries"
    );
    verdict(Grade::Healthy, kind, summary, FASTER)
}

fn verdict(grade: Grade, kind: &Kind, summary: String, advice: &[&str]) -> Verdict {
    Verdict {
        grade,
        link: kind.name.to_owned(),
        summary,
        advice: advice.iter().map(|&it| it.to_owned()).collect(),
    }
}

/// The peak on a cable, of every direction that carried messages large enough to show it.
fn rates<'a>(links: impl Iterator<Item = &'a LinkReport>) -> impl Iterator<Item = f64> {
    let large = links.filter(|link| is_large(link));
    large.flat_map(|link| {
        let peaks = [link.there.peak_gb_per_s, link.back.peak_gb_per_s];
        peaks.map(|peak| peak / link.breadth)
    })
}

fn lower_rate(link: &LinkReport) -> f64 {
    link.there.peak_gb_per_s.min(link.back.peak_gb_per_s) / link.breadth
}

fn is_large(link: &LinkReport) -> bool {
    link.message_bytes >= BANDWIDTH_BYTES_MIN
}

/// What is faster has its own transports, or is bound by a core rather than the wire. TCP payload each way in GB/s, with frames of 1500 bytes: 94 % of the rate on the wire.
const KINDS: &[(&str, f64)] = &[
    ("100 Mbit Ethernet", 0.0118),
    ("1 GbE", 0.118),
    ("2.5 GbE", 0.294),
    ("5 GbE", 0.588),
    ("10 GbE", 1.18),
    ("25 GbE", 2.94),
];
/// What carries a link, as reports have it.
const TCP: &str = "tcp";
const RDMA: &str = "rdma";
const SHARED_MEMORY: &str = "shared memory";
const MPI: &str = "mpi";
/// A cable and a switch that are well come this near to what the kind carries.
const FULL: f64 = 0.75;
/// Links of one kind differ by less.
const UNEVEN: f64 = 0.6;
/// Round trip of 4 KiB that no cable within a building needs.
const LAN_US: f64 = 1500.0;
/// No machine of the last ten years is slower unless it is busy.
const LOCAL_LOW: f64 = 0.2;
const LOCAL_USUAL: &str = "1 and more";

const BUSY: &[&str] = &[
    "other programs keep the cores busy, or there are more ranks than cores: stop some, or test fewer --nodes",
];
const LOW: &[&str] = &[
    "another route than you think: Wi-Fi, or a slower second network; give --peer the address of the fast one",
    "the port, the cable or the switch agreed on a lower rate: look with `ethtool IF` or in the network settings, change the cable",
    "one core cannot keep up: stop other programs; jumbo frames (MTU 9000 on both ends and the switch) help from 10 GbE on",
    "virtual networks, and networks over Thunderbolt, have no rate to name: compare with what the same link did before",
];
const LATE: &[&str] = &[
    "the route goes over Wi-Fi or a VPN: use a cable, and give --peer the address that belongs to it",
    "another transfer fills the link: try again while it is quiet",
    "the network card or the machine saves power: switch off energy-efficient Ethernet and deep sleep states",
];
const FAULTY: &[&str] = &[
    "memory or network card of one machine: repeat with --seed and see whether the same rank is named; test each machine alone with --nodes 2",
    "checksum offload in the network card or a virtual network: switch it off (`ethtool -K IF rx off tx off`) and repeat",
    "do not serve a model over this link until --stress has run clean for some minutes",
];
const FASTER: &[&str] = &[
    "if the cable should be faster than this kind, it has agreed on a lower rate or the route goes over another network",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link_test::report::{Checked, Direction, Fault, Operation, Spread};

    fn report(links: &[(f64, f64, f64)]) -> Report {
        let spread = |us| Spread {
            min: us,
            median: us,
            p99: us,
        };
        let direction = |rate| Direction {
            average_gb_per_s: rate * 0.9,
            peak_gb_per_s: rate,
        };
        let link = |(to, &(us, there, back)): (u16, &(f64, f64, f64))| LinkReport {
            from: 0,
            to,
            transport: TCP.to_owned(),
            cables: 1,
            breadth: 1.0,
            round_trip_4kib_us: spread(us),
            message_bytes: 16 << 20,
            there: direction(there),
            back: direction(back),
        };
        Report {
            world: links.len() as u16 + 1,
            seed: 1,
            transport: TCP.to_owned(),
            join_ms: 1.0,
            barrier_us: spread(1.0),
            correctness: Checked::default(),
            all_reduce_4kib_us: spread(1.0),
            sweep: Vec::new(),
            links: (1..).zip(links).map(link).collect(),
            stress: None,
        }
    }

    /// Links are given as round trip in µs and peaks there and back in GB/s.
    fn check(links: &[(f64, f64, f64)], place: Place, grade: Grade, link: &str, says: &str) {
        let verdict = Verdict::of(&report(links), place);
        assert_eq!(
            (verdict.grade, &*verdict.link),
            (grade, link),
            "{verdict:?}"
        );
        assert!(verdict.summary.contains(says), "{verdict:?}");
        assert!(grade == Grade::Healthy || !verdict.advice.is_empty());
    }

    #[test]
    fn rates_are_put_into_words() {
        use Grade::{Healthy, Slow};
        use Place::{Network, ThisMachine};
        check(
            &[(40.0, 2.5, 2.0)],
            ThisMachine,
            Healthy,
            "loopback",
            "2.00",
        );
        check(&[(40.0, 2.5, 0.1)], ThisMachine, Slow, "loopback", "0.10");
        check(&[(150.0, 0.117, 0.116)], Network, Healthy, "1 GbE", "98 %");
        check(&[(90.0, 1.1, 1.15)], Network, Healthy, "10 GbE", "93 %");
        check(&[(60.0, 2.8, 2.9)], Network, Healthy, "25 GbE", "95 %");
        check(
            &[(60.0, 13.0, 13.0)],
            Network,
            Healthy,
            "faster than 25 GbE",
            "13",
        );
        check(&[(90.0, 0.7, 0.7)], Network, Slow, "10 GbE", "59 %");
        check(&[(90.0, 1.1, 0.3)], Network, Slow, "10 GbE", "25 %");
        check(&[(4000.0, 0.117, 0.117)], Network, Slow, "1 GbE", "4.0 ms");
        let uneven = [(90.0, 1.1, 1.1), (90.0, 0.117, 0.117)];
        check(&uneven, Network, Slow, "10 GbE", "rank 0 and rank 2");
    }

    #[test]
    fn memory_of_one_machine_is_not_taken_for_its_network() {
        let mut report = report(&[(2.0, 9.0, 8.0)]);
        report.links[0].transport = SHARED_MEMORY.to_owned();
        let verdict = Verdict::of(&report, Place::ThisMachine);
        assert_eq!(verdict.link, "shared memory");
        assert!(
            verdict
                .summary
                .starts_with("shared memory is healthy: at least 8.00")
        );
    }

    #[test]
    fn links_are_compared_with_those_of_their_transport() {
        let over = |transports: [&str; 3], rates: [f64; 3]| {
            let mut report = report(&rates.map(|rate| (90.0, rate, rate)));
            for (link, transport) in report.links.iter_mut().zip(transports) {
                link.transport = transport.to_owned();
            }
            let Verdict { grade, link, .. } = Verdict::of(&report, Place::Network);
            (grade, link)
        };
        let is = |grade, link: &str| (grade, link.to_owned());
        // Two ranks share a machine, and two others another.
        let machines = [TCP, SHARED_MEMORY, SHARED_MEMORY];
        let healthy = is(Grade::Healthy, "1 GbE");
        assert_eq!(over(machines, [0.117, 9.0, 4.0]), healthy);
        assert_eq!(over([TCP, RDMA, RDMA], [0.117, 9.0, 8.0]), healthy);
        let uneven = over([TCP, RDMA, RDMA], [0.117, 9.0, 4.0]);
        assert_eq!(uneven, is(Grade::Slow, "1 GbE"));
        let rdma = over([RDMA, RDMA, SHARED_MEMORY], [9.0, 8.0, 4.0]);
        assert_eq!(rdma, is(Grade::Healthy, RDMA));
        let memory = over([SHARED_MEMORY; 3], [9.0, 8.0, 4.0]);
        assert_eq!(memory, is(Grade::Healthy, SHARED_MEMORY));
    }

    #[test]
    fn a_slower_cable_beside_a_fast_one_is_no_fault() {
        let mut report = report(&[(90.0, 1.47, 1.47)]);
        (report.links[0].cables, report.links[0].breadth) = (2, 1.25);
        let verdict = Verdict::of(&report, Place::Network);
        assert_eq!((verdict.grade, &*verdict.link), (Grade::Healthy, "10 GbE"));
    }

    #[test]
    fn what_mpi_has_chosen_is_not_guessed() {
        let mut report = report(&[(40.0, 0.5, 0.5)]);
        report.links[0].transport = MPI.to_owned();
        for place in [Place::Network, Place::ThisMachine] {
            let verdict = Verdict::of(&report, place);
            assert_eq!((verdict.grade, &*verdict.link), (Grade::Healthy, MPI));
            assert!(verdict.summary.contains("0.50 GB/s"), "{verdict:?}");
        }
    }

    #[test]
    fn small_messages_say_nothing_of_bandwidth() {
        let mut report = report(&[(90.0, 0.001, 0.001)]);
        report.links[0].message_bytes = 4096;
        for place in [Place::Network, Place::ThisMachine] {
            let verdict = Verdict::of(&report, place);
            assert_eq!(verdict.grade, Grade::Healthy);
            assert!(verdict.summary.contains("no message"), "{verdict:?}");
        }
    }

    #[test]
    fn damage_outweighs_speed() {
        let mut report = report(&[(40.0, 2.5, 2.5)]);
        report.correctness.faults.push(Fault {
            seen_by: 0,
            from: Some(1),
            operation: Operation::SendRecv,
            bytes: 100,
            offset: 7,
            wrong_bytes: 1,
        });
        let verdict = Verdict::of(&report, Place::ThisMachine);
        assert_eq!(verdict.grade, Grade::Faulty);
        for word in ["rank 0 saw 1 wrong byte", "byte 7", "send/recv from rank 1"] {
            assert!(verdict.summary.contains(word), "{verdict:?}");
        }
    }
}
