//! Where the ranks of a launched run meet: the first host's address as the others see it, and a port.

use super::LaunchArgs;
use super::hosts::Host;
use super::remote::Shell;
use crate::environment;
use anyhow::{Context, Result, bail};
use ferrotune_config::env;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};

/// The port if none is asked for.
const PORT: u16 = 20000;

/// The first host's address: as asked for, else what ssh calls it, else, if that is this machine to itself, the address by
/// which this machine reaches the others.
///
/// # Errors
/// If the first host is this machine, and no network leads from it to another host.
pub(super) fn address(args: &LaunchArgs, shell: &Shell, hosts: &[Host]) -> Result<String> {
    if let Some(asked) = args.master_addr.clone().or_else(|| environment::var(env::MASTER_ADDR)) {
        return Ok(asked);
    }
    let first = shell.address(&hosts[0]);
    if !is_loopback(&first) {
        return Ok(first);
    }
    let other = hosts[1..].iter().map(|host| shell.address(host)).find(|other| !is_loopback(other));
    let Some(other) = other else { return Ok(first) };
    let seen = way_to(&other).with_context(|| {
        format!(
            "{first} is this machine to itself alone, and its address for {other} can't be found: give --master-addr"
        )
    })?;
    Ok(seen.to_string())
}

/// The port: as asked for, as set by the variable of today's commands, else the usual one.
///
/// # Errors
/// If the variable holds none.
pub(super) fn port(args: &LaunchArgs) -> Result<u16> {
    match (args.port, environment::var(env::MASTER_PORT)) {
        (Some(port), _) => Ok(port),
        (None, None) => Ok(PORT),
        (None, Some(text)) => match text.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => bail!("MASTER_PORT is `{text}`, which is no port: write a number from 1 to 65535"),
        },
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// This machine's address on the way to another. Nothing is sent.
fn way_to(other: &str) -> Result<IpAddr> {
    let to = (other, PORT).to_socket_addrs()?.next().context("the name has no address")?;
    let from: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::{is_loopback, way_to};

    #[test]
    fn loopback_has_many_names() {
        assert!(["localhost", "127.0.0.1", "127.8.8.8", "::1"].into_iter().all(is_loopback));
        assert!(!["gpu1", "10.0.0.1", "fd00::1"].into_iter().any(is_loopback));
    }

    #[test]
    fn the_way_to_an_address_begins_at_one_of_this_machine() {
        assert_eq!(way_to("127.0.0.9").unwrap().to_string(), "127.0.0.1");
        assert!(way_to("no such host").is_err());
    }
}
