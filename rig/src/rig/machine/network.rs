//! The rig's network: a bridge in the sandbox, with the control plane on it, and a cable to each machine. Pods of machine
//! `i` have addresses of `10.244.<i>.0/24`; every machine and the control plane route there.

use anyhow::Result;
use rustix::process::Pid;

use super::{Machine, Place};
use crate::rig::command::run;

/// The control plane's address.
pub const CONTROL_PLANE: &str = "10.89.0.1";
/// The API server's port there.
pub const API_PORT: u16 = 6443;
/// The API server as pods see it (service `kubernetes`).
const API_SERVICE: &str = "10.96.0.1";
const BRIDGE: &str = "dotgraft0";
/// The table of one-way partitions in a machine.
const REFUSED: &str = "refused";

/// The address of machine `index`.
pub fn node_address(index: u8) -> String {
    format!("10.89.0.{}", 10 + u16::from(index))
}

/// The addresses of its pods.
pub fn pod_range(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

/// The bridge, with routes to the pods of `machines` machines. Dropping it removes it.
pub struct Network {
    machines: u8,
}

impl Network {
    /// Makes the bridge in the sandbox's network namespace.
    pub fn create(machines: u8) -> Result<Self> {
        let network = Self { machines };
        // With an address of its own: else it changes with its cables, and other machines speak to nobody until they ask anew.
        run("ip", &["link", "add", BRIDGE, "address", "02:00:0a:59:00:01", "type", "bridge"])?;
        run("ip", &["address", "add", &format!("{CONTROL_PLANE}/24"), "dev", BRIDGE])?;
        run("ip", &["link", "set", BRIDGE, "up"])?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        for index in 1..=network.machines {
            run("ip", &["route", "add", &pod_range(index), "via", &node_address(index)])?;
        }
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = run("ip", &["link", "delete", BRIDGE]);
    }
}

/// Runs a program of the sandbox in a machine's network.
fn in_network(init: Pid, program: &str, args: &[&str]) -> Result<()> {
    let init = init.as_raw_nonzero().to_string();
    let all = [&["-t", &init, "-n", program], args].concat();
    run("nsenter", &all).map(|_| ())
}

/// A new cable for a machine that was just turned on; routes to all other machines' pods; the API's service address.
pub fn connect(place: &Place, init: Pid) -> Result<()> {
    let pid = init.as_raw_nonzero().to_string();
    run("ip", &["link", "add", &place.name, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    run("ip", &["link", "set", &place.name, "master", BRIDGE, "up"])?;
    in_network(init, "ip", &["address", "add", &format!("{}/24", node_address(place.index)), "dev", "eth0"])?;
    in_network(init, "ip", &["link", "set", "eth0", "up"])?;
    in_network(init, "ip", &["route", "add", "default", "via", CONTROL_PLANE])?;
    let rule = format!("ip daddr {API_SERVICE} tcp dport 443 dnat to {CONTROL_PLANE}:{API_PORT}");
    let table = format!(
        "table ip api {{ chain pods {{ type nat hook prerouting priority -100; {rule}; }}; \
         chain node {{ type nat hook output priority -100; {rule}; }}; }}"
    );
    in_network(init, "nft", &[&table])
}

/// Takes the cable of a machine that was just turned off, before the kernel gets to it.
pub fn disconnect(place: &Place) -> Result<()> {
    match run("ip", &["link", "delete", &place.name]) {
        Err(e) if !format!("{e:#}").contains("Cannot find device") => Err(e),
        _ => Ok(()),
    }
}

/// Cable in or out.
pub fn set_link(place: &Place, up: bool) -> Result<()> {
    run("ip", &["link", "set", &place.name, if up { "up" } else { "down" }]).map(|_| ())
}

/// See [`Machine::refuse`].
pub fn refuse(machine: &Machine, address: &str) -> Result<()> {
    let table = format!("table ip {REFUSED} {{ chain in {{ type filter hook prerouting priority -300; ip saddr {address} drop; }}; }}");
    in_network(machine.init()?, "nft", &[&table])
}

/// See [`Machine::limit`]. A queue at both ends, as a queue holds what is sent.
pub fn limit(machine: &Machine, rate: Option<&str>) -> Result<()> {
    let init = machine.init()?;
    let _ = in_network(init, "tc", &["qdisc", "delete", "dev", "eth0", "root"]);
    let _ = run("tc", &["qdisc", "delete", "dev", machine.name(), "root"]);
    if let Some(rate) = rate {
        let queue = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"];
        in_network(init, "tc", &[&["qdisc", "add", "dev", "eth0"], queue.as_slice()].concat())?;
        run("tc", &[&["qdisc", "add", "dev", machine.name()], queue.as_slice()].concat())?;
    }
    Ok(())
}

/// No refusals and no limit.
pub fn heal(machine: &Machine) -> Result<()> {
    let _ = in_network(machine.init()?, "nft", &["delete", "table", "ip", REFUSED]);
    limit(machine, None)
}
