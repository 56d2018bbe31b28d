//! Runs over a network that is wrong, or goes wrong: hosts are network namespaces on switches of this machine.
//!
//! That takes a machine on which namespaces can be made (root, and `ip` and `tc` of iproute2). Elsewhere each test says that
//! it was left out; the same faults without a network are in `many.rs`, and in the tests of the crate `dist`.

#![expect(clippy::print_stderr, reason = "a test that is left out says so")]

use crate::common::{Place, Run, trainable};
use crate::many::{PATIENCE, adapter, end, losses, reach};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The networks that hosts can have a card in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Net {
    /// Addresses 10.128.7.x.
    Office,
    /// Addresses 10.128.6.x.
    Fast,
}

impl Net {
    fn card(self) -> &'static str {
        match self {
            Self::Office => "eno1",
            Self::Fast => "fast0",
        }
    }

    fn address(self, host: usize) -> String {
        format!("10.128.{}.{}", if self == Self::Office { 7 } else { 6 }, host + 1)
    }
}

const BOTH: &[Net] = &[Net::Office, Net::Fast];

/// Hosts with names of their own on this machine, gone when this is dropped.
struct Hosts {
    prefix: String,
    count: usize,
}

impl Hosts {
    /// Hosts with these cards, or nothing where a machine can't have such.
    fn new(cards: &[&[Net]]) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("ft{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { prefix, count: cards.len() };
        let bridge = || ip(&format!("-n {} link add probe type bridge", hosts.switch()));
        if !(ip(&format!("netns add {}", hosts.switch())) && bridge()) {
            eprintln!("left out: this machine makes no network namespaces (that takes root, and iproute2)");
            return None;
        }
        for net in BOTH {
            hosts.on_switch(&format!("link add {} type bridge", net.card()));
            hosts.on_switch(&format!("link set {} up", net.card()));
        }
        for (host, nets) in cards.iter().enumerate() {
            assert!(ip(&format!("netns add {}", hosts.name(host))));
            hosts.on(host, "link set lo up");
            for net in *nets {
                let (card, port) = (net.card(), port(*net, host));
                hosts.on_switch(&format!("link add {port} type veth peer name {card} netns {}", hosts.name(host)));
                hosts.on(host, &format!("addr add {}/24 dev {card}", net.address(host)));
                hosts.on(host, &format!("link set {card} up"));
                hosts.on_switch(&format!("link set {port} master {card} up"));
            }
        }
        Some(hosts)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    fn name(&self, host: usize) -> String {
        format!("{}-host{host}", self.prefix)
    }

    fn on_switch(&self, command: &str) {
        assert!(ip(&format!("-n {} {command}", self.switch())), "{command}");
    }

    fn on(&self, host: usize, command: &str) {
        assert!(ip(&format!("-n {} {command}", self.name(host))), "{command}");
    }

    /// From now on nothing that a host sends arrives, and nothing arrives there. Nobody is told: its card stays up.
    fn cut(&self, net: Net, host: usize) {
        self.on_switch(&format!("link set {} nomaster", port(net, host)));
    }

    /// Undoes [`cut`](Self::cut).
    fn mend(&self, net: Net, host: usize) {
        self.on_switch(&format!("link set {} master {}", port(net, host), net.card()));
    }

    /// What a host sends leaves it at so many kilobits a second; false where the system can't do that.
    fn throttle(&self, net: Net, host: usize, kilobits: usize) -> bool {
        let limit = format!("tbf rate {kilobits}kbit burst 8kb latency 400ms");
        let done = tool("tc", &format!("-n {} qdisc replace dev {} root {limit}", self.name(host), net.card()));
        if !done {
            eprintln!("left out: this machine throttles no link (that takes `tc` and its token buckets)");
        }
        done
    }

    /// The command of a host, as it is typed there.
    fn command(&self, place: &Place, host: usize, master: &str, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_ferrotune");
        let name = self.name(host);
        let words = [&["netns", "exec", &name, program, "train", "train.yaml"], args].concat();
        let mut command = place.command_as("ip".as_ref(), &words);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("FORCE_TORCHRUN", "1").env("NNODES", self.count.to_string()).env("NODE_RANK", host.to_string());
        command.env("MASTER_ADDR", master).env("MASTER_PORT", "20000");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts all hosts, whose master is host 0 in `net`.
    fn start(&self, place: &Place, net: Net, variables: &[(&str, &str)]) -> Vec<Child> {
        let start = |host| {
            let mut command = self.command(place, host, &net.address(0), &[]);
            command.envs(variables.iter().copied()).spawn().unwrap()
        };
        (0..self.count).map(start).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for space in (0..self.count).map(|host| self.name(host)).chain([self.switch()]) {
            ip(&format!("netns del {space}"));
        }
    }
}

/// A host's place in a switch.
fn port(net: Net, host: usize) -> String {
    format!("{}-{host}", net.card())
}

fn ip(args: &str) -> bool {
    tool("ip", args)
}

fn tool(program: &str, args: &str) -> bool {
    Command::new(program).args(args.split(' ')).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// All hosts' ends, which must be errors.
fn failed(place: &Place, children: Vec<Child>) -> Vec<Run> {
    let told = end(place, children);
    assert!(told.iter().all(|run| run.code != Some(0)), "{} {}", told[0].err, told[1].err);
    told
}

const SHORT: &str = "max_steps: 6\n";

#[test]
fn of_two_networks_the_named_one_is_used_for_everything() {
    let Some(hosts) = Hosts::new(&[BOTH, BOTH]) else { return };
    for (variable, value, net) in [
        ("NCCL_SOCKET_IFNAME", "fast", Net::Fast),
        ("GLOO_SOCKET_IFNAME", "eno1", Net::Office),
        ("NCCL_SOCKET_IFNAME", "^eno1,lo", Net::Fast),
    ] {
        let place = trainable(SHORT);
        // The master's address is in one network, and the data may go over the other.
        let told = end(&place, hosts.start(&place, Net::Office, &[(variable, value)]));
        let told: Vec<Run> = told.into_iter().map(Run::ok).collect();
        for host in [0, 1] {
            assert!(told[0].err.contains(&format!(" {}:", net.address(host))), "{variable}={value}: {}", told[0].err);
        }
        assert_eq!(losses(&place).len(), 6);
    }
}

#[test]
fn networks_that_do_not_meet_are_named() {
    let Some(hosts) = Hosts::new(&[BOTH, &[Net::Office]]) else { return };
    let place = trainable("max_steps: 6\nrendezvous_timeout: 4\n");
    let only = |host: usize, name: &str| {
        let mut command = hosts.command(&place, host, &Net::Office.address(0), &[]);
        command.env("NCCL_SOCKET_IFNAME", name).spawn().unwrap()
    };
    // An interface that isn't there.
    let told = failed(&place, vec![only(0, "eno1"), only(1, "ib0")]);
    let error = told[1].error();
    assert!(error.contains("NCCL_SOCKET_IFNAME=ib0 leaves no network interface"), "{error}");
    assert!(error.contains("10.128.7.2 (eno1)"), "{error}");
    // One that the others have no way to.
    let told = failed(&place, vec![only(0, "fast0"), only(1, "eno1")]);
    for run in &told {
        let error = run.error();
        assert!(error.contains("can't reach rank 0") && error.contains("10.128.6.1"), "{error}");
        assert!(error.contains("NCCL_SOCKET_IFNAME"), "{error}");
    }
}

#[test]
fn a_wrong_address_of_the_master_is_told_by_what_was_seen() {
    let Some(hosts) = Hosts::new(&[&[Net::Office], &[Net::Office]]) else { return };
    let place = trainable("max_steps: 6\nrendezvous_timeout: 3\n");
    let with = |host: usize, master: &str| hosts.command(&place, host, master, &[]).spawn().unwrap();
    let second = Net::Office.address(1);
    for (master, first, other) in [
        // That of the other machine.
        (second.as_str(), "isn't an address of this machine", "nobody listens at this port"),
        // Nobody's.
        ("10.128.7.77", "isn't an address of this machine", "no machine answers for 10.128.7.77:20000"),
        // One that no way leads to.
        (
            "192.168.1.5",
            "isn't an address of this machine",
            "no network of this machine leads to the master's address 192.168.1.5:20000",
        ),
        ("gpu-server-1", "can't be resolved", "can't be resolved"),
    ] {
        let told = failed(&place, vec![with(0, master), with(1, master)]);
        assert!(told[0].error().contains(first), "{master}: {}", told[0].error());
        assert!(told[1].error().contains(other), "{master}: {}", told[1].error());
    }
}

#[test]
fn a_port_that_is_walled_off_is_told() {
    let Some(hosts) = Hosts::new(&[&[Net::Office], &[Net::Office]]) else { return };
    let place = trainable("max_steps: 6\nrendezvous_timeout: 4\n");
    // What goes to the master vanishes, as behind a firewall that drops.
    hosts.on(1, &format!("neigh add {} lladdr 02:00:00:00:00:99 dev eno1 nud permanent", Net::Office.address(0)));
    let told = failed(&place, hosts.start(&place, Net::Office, &[]));
    assert!(told[0].error().contains("rank 1"), "{}", told[0].error());
    assert!(told[1].error().contains("doesn't answer") && told[1].error().contains("firewall"), "{}", told[1].error());
}

#[test]
fn a_cut_wire_ends_all_within_the_deadline() {
    let Some(hosts) = Hosts::new(&[&[Net::Office], &[Net::Office], &[Net::Office]]) else { return };
    let place = trainable("max_steps: 100000\nsave_steps: 50\npeer_timeout: 3\n");
    let children = hosts.start(&place, Net::Office, &[]);
    reach(&place, 8);
    hosts.cut(Net::Office, 2);
    let cut = Instant::now();
    let told = failed(&place, children);
    assert!(cut.elapsed() < Duration::from_secs(8), "{:?}", cut.elapsed());
    for (rank, run) in told.iter().enumerate() {
        assert_eq!(run.code, Some(75), "{}", run.err);
        let error = run.error();
        // The two that still see each other name the third; that one has lost both, and names one.
        let named = if rank == 2 { ["rank 0 (", "rank 1 ("] } else { ["rank 2 ("; 2] };
        assert!(named.iter().any(|name| error.contains(name)), "rank {rank}: {error}");
        assert!(error.contains("it was "), "{error}");
    }
}

#[test]
fn a_wire_that_is_cut_for_less_than_the_deadline_costs_nothing_but_time() {
    let Some(hosts) = Hosts::new(&[&[Net::Office], &[Net::Office]]) else { return };
    let steps = "max_steps: 300\nsave_steps: 100\nlogging_steps: 1\n";
    let (calm, place) = (trainable(steps), trainable(steps));
    end(&calm, hosts.start(&calm, Net::Office, &[])).into_iter().for_each(|run| drop(run.ok()));
    let children = hosts.start(&place, Net::Office, &[]);
    for step in [20, 120] {
        reach(&place, step);
        hosts.cut(Net::Office, 1);
        std::thread::sleep(Duration::from_millis(1500));
        hosts.mend(Net::Office, 1);
    }
    end(&place, children).into_iter().for_each(|run| drop(run.ok()));
    assert_eq!(losses(&place), losses(&calm));
    assert!(adapter(&place) == adapter(&calm), "the same bits");
}

#[test]
fn a_wire_that_becomes_slow_is_waited_for_however_long_a_step_takes() {
    let Some(hosts) = Hosts::new(&[&[Net::Office], &[Net::Office]]) else { return };
    // 0.7 MB of gradients and as many of sums at 2 Mbit/s: over five seconds, and nobody may be silent for two.
    let steps = "max_steps: 14\nsave_strategy: 'no'\nfinetuning_type: full\nstrategy: replicate\npeer_timeout: 2\n";
    let (calm, place) = (trainable(steps), trainable(steps));
    end(&calm, hosts.start(&calm, Net::Office, &[])).into_iter().for_each(|run| drop(run.ok()));
    if !hosts.throttle(Net::Office, 1, 20_000) {
        return;
    }
    let begun = Instant::now();
    let children = hosts.start(&place, Net::Office, &[]);
    reach(&place, 11);
    assert!(hosts.throttle(Net::Office, 1, 2_000));
    end(&place, children).into_iter().for_each(|run| drop(run.ok()));
    assert!(begun.elapsed() > Duration::from_secs(6) && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(losses(&place), losses(&calm));
}

#[test]
fn a_host_whose_card_is_slower_than_the_others_is_named() {
    let Some(hosts) = Hosts::new(&[&[Net::Office], &[Net::Office], &[Net::Office]]) else { return };
    let place = trainable("max_steps: 2\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 1\n");
    // So slow that nothing else that this machine does comes near it.
    if !hosts.throttle(Net::Office, 1, 5_000) {
        return;
    }
    let told = end(&place, hosts.start(&place, Net::Office, &[]));
    let told: Vec<Run> = told.into_iter().map(Run::ok).collect();
    let words = &told[0].err;
    assert!(words.contains("warning: the wire from rank 1 (") && words.contains("to rank 2 ("), "{words}");
    assert!(words.contains("NCCL_SOCKET_IFNAME"), "{words}");
}
