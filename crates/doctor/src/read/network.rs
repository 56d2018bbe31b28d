//! Network interfaces, and ports of InfiniBand and RoCE.

use super::Here;
use super::files::{child_names, line, number};
use crate::facts::{Interface, RdmaPort};
use std::path::Path;

pub(super) fn interfaces(here: &Here<'_>) -> Vec<Interface> {
    let folder = here.root.join("sys/class/net");
    let of = |name: String| {
        let own = folder.join(&name);
        let addresses = here.addresses.iter().filter(|(of, _)| *of == name).map(|(_, address)| address.clone());
        // Drivers that don't know write -1.
        let megabits = number::<f64>(&own.join("speed")).filter(|speed| (1.0..1e7).contains(speed));
        Interface {
            addresses: addresses.collect(),
            // The loopback's and some tunnels' state is `unknown` while they work.
            up: line(&own.join("operstate")).is_some_and(|state| ["up", "unknown"].contains(&state.as_str())),
            speed: megabits.map(|speed| speed * 1e6),
            mtu: number(&own.join("mtu")),
            is_device: own.join("device").symlink_metadata().is_ok(),
            allowed: (here.allows)(&name),
            name,
        }
    };
    child_names(&folder).into_iter().map(of).collect()
}

pub(super) fn rdma(root: &Path) -> Vec<RdmaPort> {
    let folder = root.join("sys/class/infiniband");
    let devices = child_names(&folder);
    let ports = devices.iter().flat_map(|device| {
        let ports = folder.join(device).join("ports");
        child_names(&ports).into_iter().map(move |port| (format!("{device}:{port}"), ports.join(port)))
    });
    let of = |(name, port): (String, std::path::PathBuf)| {
        // `4: ACTIVE`; `400 Gb/sec (4X NDR)`.
        let state = line(&port.join("state")).unwrap_or_default();
        let rate = line(&port.join("rate")).unwrap_or_default();
        let gigabits = rate.split_once(" Gb/sec").and_then(|(number, _)| number.parse::<f64>().ok());
        RdmaPort {
            name,
            state: state.split_once(": ").map_or(state.clone(), |(_, word)| word.to_owned()),
            layer: line(&port.join("link_layer")).unwrap_or_default(),
            rate: gigabits.filter(|rate| (0.1..1e5).contains(rate)).map(|rate| rate * 1e9),
        }
    };
    ports.map(of).collect()
}
