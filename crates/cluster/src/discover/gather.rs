//! Asking the system: the only part of discovery that looks outside.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::machine::{Machine, System};
use super::{ip, mac, sysfs};

/// Looks at this machine. On Linux `sys` is the root of sysfs, usually `/sys`. What cannot be found out is said in the
/// machine itself; nothing is changed.
#[must_use]
pub fn look(sys: &Path) -> Machine {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    match cfg!(target_os = "macos") {
        true => look_at_mac(name),
        false => look_at_linux(name, sys),
    }
}

fn look_at_linux(name: String, sys: &Path) -> Machine {
    let mut interfaces = sysfs::interfaces(sys);
    let mut unknown = Vec::new();
    let addresses = ask(&["ip", "-json", "address"]).and_then(|output| {
        ip::add_addresses(&mut interfaces, &output).map_err(|error| error.to_string())
    });
    if let Err(reason) = addresses {
        unknown.push(format!(
            "{reason}; without it addresses are not known (package iproute2)"
        ));
    }
    Machine {
        name,
        system: System::Linux,
        model: None,
        interfaces,
        rdma: sysfs::rdma_devices(sys),
        rdma_enabled: None,
        thunderbolt: Vec::new(),
        unknown,
    }
}

fn look_at_mac(name: String) -> Machine {
    let mut unknown = Vec::new();
    let mut printed = |words: &[&str]| ask(words).map_err(|reason| unknown.push(reason)).ok();
    let printed = mac::Printed {
        thunderbolt: printed(&["system_profiler", "SPThunderboltDataType", "-json"]),
        hardware_ports: printed(&["networksetup", "-listallhardwareports"]),
        ifconfig: printed(&["ifconfig", "-a"]),
        ibv_devices: printed(&["ibv_devices"]),
        ibv_devinfo: printed(&["ibv_devinfo", "-v"]),
        rdma_status: printed(&["rdma_ctl", "status"]),
    };
    mac::machine(name, &printed, unknown)
}

/// Runs a tool and returns what it prints, or in words why there is nothing.
fn ask(words: &[&str]) -> Result<String, String> {
    let tool = words.join(" ");
    let failed = |reason: &dyn std::fmt::Display| format!("`{tool}`: {reason}");
    let child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.map_err(|error| failed(&error))?;
    let stdout = child.stdout.take().expect("stdout was piped above");
    let (sender, printed) = mpsc::channel();
    // Ends with the tool, which is killed below if it takes too long.
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        let _nobody_may_wait = sender.send(read.map(|_count| bytes));
    });
    let printed = printed.recv_timeout(TOOL_TIME_MAX);
    if printed.is_err() {
        let _may_have_ended = child.kill();
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    let bytes = printed
        .map_err(|_| {
            failed(&format!(
                "it took longer than {} s",
                TOOL_TIME_MAX.as_secs()
            ))
        })?
        .map_err(|error| failed(&error))?;
    match status.success() {
        true => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        false => Err(failed(&status)),
    }
}

/// `system_profiler` takes some seconds on a busy machine.
const TOOL_TIME_MAX: Duration = Duration::from_secs(30);
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_answer_or_say_why_not() {
        assert_eq!(ask(&["echo", "a b"]).unwrap(), "a b\n");
        assert!(
            ask(&["/nowhere/tool", "-x"])
                .unwrap_err()
                .starts_with("`/nowhere/tool -x`: ")
        );
        assert_eq!(ask(&["false"]).unwrap_err(), "`false`: exit status: 1");
    }
}
