//! Two or more nodes on one machine: network namespaces on a switch, each sending at a set rate.

use ferrotune_dist::Link;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

const SWITCH: &str = "ferrotune-switch";

/// The namespace of a node.
pub(crate) fn name(node: usize) -> String {
    format!("ferrotune-node{node}")
}

fn address(rank: usize, per_node: usize) -> String {
    format!("10.77.0.{}:{}", rank / per_node + 1, 7700 + rank)
}

/// Namespaces that are gone when this is dropped.
pub(crate) struct Network {
    nodes: usize,
}

impl Network {
    /// `nodes` nodes that send `megabits` a second each.
    pub(crate) fn new(nodes: usize, megabits: usize) -> Self {
        let network = Self { nodes };
        network.remove();
        ip(&format!("netns add {SWITCH}"));
        ip(&format!("-n {SWITCH} link add switch type bridge"));
        ip(&format!("-n {SWITCH} link set switch up"));
        for node in 0..nodes {
            let (space, port) = (name(node), format!("port{node}"));
            ip(&format!("netns add {space}"));
            ip(&format!("-n {SWITCH} link add {port} type veth peer name card netns {space}"));
            ip(&format!("-n {SWITCH} link set {port} master switch up"));
            ip(&format!("-n {space} addr add 10.77.0.{}/24 dev card", node + 1));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set card up"));
            run("tc", &format!("-n {space} qdisc add dev card root tbf rate {megabits}mbit burst 128kb latency 50ms"));
        }
        network
    }

    /// Also what an interrupted run left behind.
    fn remove(&self) {
        let spaces = (0..self.nodes).map(name).chain([SWITCH.to_owned()]);
        for space in spaces.filter(|space| std::path::Path::new("/run/netns").join(space).exists()) {
            ip(&format!("netns del {space}"));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().expect("ip and tc are there");
    assert!(status.success(), "{program} {arguments}: {status}; this benchmark needs root");
}

/// Connects a rank to all others: each listens for those of higher numbers, which say who they are.
pub(crate) fn connect(rank: usize, world: usize, per_node: usize) -> Vec<Link> {
    let listener = TcpListener::bind(address(rank, per_node)).expect("a free port");
    let link = |rank, stream| Link { rank, host: "bench".into(), stream };
    let mut links = Vec::new();
    for other in 0..rank {
        let mut stream = loop {
            match TcpStream::connect(address(other, per_node)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.write_all(&[rank as u8]).expect("a number");
        links.push(link(other, stream));
    }
    for _ in rank + 1..world {
        let mut stream = listener.accept().expect("a connection").0;
        let mut number = [0];
        stream.read_exact(&mut number).expect("a number");
        links.push(link(usize::from(number[0]), stream));
    }
    links
}
