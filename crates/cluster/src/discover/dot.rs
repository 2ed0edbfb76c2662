//! A picture of the cabling for GraphViz.

use std::fmt::Write;

use super::cabling::Cabling;
use super::machine::Machine;

/// Returns the machines and their cables as an undirected graph in GraphViz's language.
#[must_use]
pub fn dot(machines: &[Machine], cabling: &Cabling) -> String {
    let mut text = "graph fabric {\n".to_owned();
    let mut line =
        |words: String| writeln!(text, "  {words};").expect("writing to a string succeeds");
    for machine in machines {
        line(quoted(&machine.name));
    }
    for cable in &cabling.cables {
        let [one, other] = cable.ends.each_ref();
        let [from, to] = [one, other].map(|end| {
            let interface = end.interface.clone();
            interface.unwrap_or_else(|| format!("port {}", end.receptacle))
        });
        let speed = cable
            .speed_gbit
            .map_or_else(String::new, |speed| format!(", {speed} Gb/s"));
        let [one, other] = [one, other].map(|end| quoted(&machines[end.machine].name));
        line(format!(
            "{one} -- {other} [label={}]",
            quoted(&format!("{from} – {to}{speed}"))
        ));
    }
    for (end, name) in &cabling.loose {
        let machine = quoted(&machines[end.machine].name);
        line(format!(
            "{machine} -- {} [style=dashed]",
            quoted(&format!("? {name}"))
        ));
    }
    text + "}\n"
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::cabling::tests::macs;

    #[test]
    fn cables_are_edges() {
        let mut machines = macs(2, &[[0, 1, 1, 2]]);
        machines[1].name = "a \"b\"".to_owned();
        let stranger = macs(2, &[[0, 3, 1, 4]]).remove(0).thunderbolt.remove(2);
        machines[0].thunderbolt[2] = crate::discover::ThunderboltPort {
            peer: stranger.peer.map(|mut peer| {
                peer.domain = "elsewhere".to_owned();
                peer
            }),
            ..machines[0].thunderbolt[2].clone()
        };
        assert_eq!(
            dot(&machines, &Cabling::of(&machines)),
            "graph fabric {\n  \"mac0\";\n  \"a \\\"b\\\"\";\n  \"mac0\" -- \"a \\\"b\\\"\" [label=\"en2 – en3, 80 Gb/s\"];\n  \
             \"mac0\" -- \"? mac1\" [style=dashed];\n}\n"
        );
    }
}
