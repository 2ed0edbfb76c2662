//! Which interface is which port, as macOS's `networksetup -listallhardwareports` prints it.

/// Returns pairs of an interface (`en2`) and its port (`Thunderbolt 1`).
pub(crate) fn parse(output: &str) -> Vec<(String, String)> {
    let mut ports = Vec::new();
    let mut port = None;
    for line in output.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("Hardware Port:") {
            port = Some(name.trim());
        } else if let Some(device) = line.strip_prefix("Device:")
            && let Some(port) = port.take()
        {
            ports.push((device.trim().to_owned(), port.to_owned()));
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_the_port_named_above_it() {
        let ports = parse(include_str!("fixtures/mac1-hardwareports.txt"));
        let wanted = [
            ("en0", "Ethernet"),
            ("en5", "Ethernet Adapter (en5)"),
            ("bridge0", "Thunderbolt Bridge"),
            ("en1", "Wi-Fi"),
            ("en2", "Thunderbolt 1"),
            ("en3", "Thunderbolt 2"),
            ("en4", "Thunderbolt 3"),
        ];
        let wanted = wanted.map(|(device, port)| (device.to_owned(), port.to_owned()));
        assert_eq!(ports, wanted);
        assert!(parse("Device: en0\n\nVLAN Configurations\n===").is_empty());
    }
}
