//! This machine's network interfaces, and which address of it a run uses.

use super::{Allowed, JoinError};
use nix::ifaddrs::getifaddrs;
use std::net::IpAddr;

/// An interface and one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

/// All interfaces of this machine; none if the system doesn't tell.
pub fn all() -> Vec<Interface> {
    let Ok(found) = getifaddrs() else { return Vec::new() };
    let address = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            // An address of the link alone needs its interface to mean anything.
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        Some(Interface { name: entry.interface_name, address: ip })
    };
    found.filter_map(address).collect()
}

/// All of them in words.
pub(super) fn words() -> String {
    let all: Vec<String> = all().iter().map(|i| format!("{} ({})", i.address, i.name)).collect();
    if all.is_empty() { "none that the system tells of".into() } else { all.join(", ") }
}

/// The address that the others are to connect to: that of an allowed interface, or the one that `route`, a connection to
/// the master, goes out by.
pub(super) fn own_address(allowed: Option<&Allowed>, route: IpAddr) -> Result<IpAddr, JoinError> {
    let Some(allowed) = allowed else { return Ok(route) };
    let mut usable: Vec<Interface> = all().into_iter().filter(|i| (allowed.allows)(&i.name)).collect();
    // The kind of address that the master is reached by, and the route itself where it is among them.
    usable.sort_by_key(|i| (i.address != route, i.address.is_ipv4() != route.is_ipv4()));
    let first = usable.first().map(|i| i.address);
    first.ok_or_else(|| JoinError::NoInterface { words: allowed.words.clone(), own: words() })
}
