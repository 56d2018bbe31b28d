//! Machines of paper and what is said of them.

use super::{Finding, Weight, is_sound, judge};
use crate::examine::ways;
use crate::facts::*;

fn slot(address: &str, above: &[&str], node: u32) -> Slot {
    Slot {
        address: address.into(),
        above: above.iter().map(|&name| name.into()).collect(),
        node: Some(node),
        link: Some(PciLink { transfers: 2.5e9, lanes: 16 }),
        most: Some(PciLink { transfers: 16e9, lanes: 16 }),
        translation: Some("identity".into()),
    }
}

/// Eight L20 on two processors: pairs behind a switch, two switches a host bridge.
fn l20() -> Facts {
    let mut facts = Facts::default();
    for number in 0..8usize {
        let (node, switch) = (number / 4, number / 2);
        let (host, root) = (format!("pci0000:{node}0"), format!("0000:{node}0:0{switch}.0"));
        let (up, down) = (format!("0000:{node}1:0{switch}.0"), format!("0000:{node}2:0{number}.0"));
        let address = format!("0000:{node}{}:00.0", number + 3);
        facts.machine.slots.push(slot(&address, &[&host, &root, &up, &down], node as u32));
        facts.gpus.devices.push(Gpu {
            number,
            name: "NVIDIA L20".into(),
            memory: 46068 << 20,
            capability: (8, 9),
            multiprocessors: 92,
            clock: Some(2.52e9),
            address,
            health: Some(Health::default()),
            ..Gpu::default()
        });
    }
    for name in ["NVIDIA driver", "cublasLt", "NCCL", "NVML"] {
        let found = Some(Found { file: format!("/lib/{name}"), version: Some("1".into()) });
        facts.gpus.libraries.push(Library { name: name.into(), found, ..Library::default() });
    }
    facts.gpus.cuda = Some(12_040);
    let numbers = || 0..8usize;
    let all = numbers().flat_map(|from| numbers().map(move |to| (from, to))).filter(|(from, to)| from != to);
    facts.gpus.pairs = all.map(|(from, to)| Pair { from, to, access: true, ..Pair::default() }).collect();
    let slots = facts.machine.slots.clone();
    ways(&mut facts.gpus, &slots);
    facts.machine.memory.shm = Some((64 << 30, 64 << 30));
    facts
}

fn names(facts: &Facts) -> Vec<&'static str> {
    judge(facts).iter().map(|finding| finding.name).collect()
}

fn finding(facts: &Facts, name: &str) -> Finding {
    judge(facts)
        .into_iter()
        .find(|finding| finding.name == name)
        .unwrap_or_else(|| panic!("{name}: {:?}", names(facts)))
}

fn copied(from: usize, to: usize, outcome: Outcome) -> Trial {
    Trial { what: What::Copy { from, to }, size: String::new(), outcome }
}

fn summed(direct: bool, outcome: Outcome) -> Trial {
    Trial { what: What::AllReduce { ranks: 8, direct }, size: String::new(), outcome }
}

fn right(rate: f64) -> Outcome {
    Outcome::Right { rate, telling: true }
}

#[test]
fn ways_are_those_of_the_bus() {
    let facts = l20();
    let way = |from, to| facts.gpus.pair(from, to).unwrap().way;
    assert_eq!((way(0, 1), way(0, 2), way(0, 4), way(7, 6)), (Way::Switch, Way::HostBridge, Way::System, Way::Switch));
    let mut linked = l20();
    linked.gpus.pairs.iter_mut().for_each(|pair| pair.atomics = true);
    let slots = linked.machine.slots.clone();
    ways(&mut linked.gpus, &slots);
    assert_eq!(linked.gpus.pair(0, 1).unwrap().way, Way::Switch, "NVML says that no link is up");
    linked.gpus.devices.iter_mut().for_each(|gpu| gpu.health = None);
    ways(&mut linked.gpus, &slots);
    assert_eq!(linked.gpus.pair(0, 5).unwrap().way, Way::Nvlink);
    ways(&mut linked.gpus, &[]);
    linked.gpus.pairs.iter_mut().for_each(|pair| pair.atomics = false);
    ways(&mut linked.gpus, &[]);
    assert_eq!(linked.gpus.pair(0, 5).unwrap().way, Way::Unknown);
}

#[test]
fn a_sound_server_has_no_finding() {
    let mut facts = l20();
    facts.trials.push(copied(0, 1, right(26e9)));
    assert_eq!(judge(&facts), []);
    assert_eq!(names(&Facts::default()), ["no-gpu"]);
    assert!(is_sound(&judge(&Facts::default())));
}

#[test]
fn copies_that_hang_or_corrupt_have_their_cause_and_cure() {
    let mut facts = l20();
    facts.machine.bridges = vec![
        Bridge { address: "0000:10:02.0".into(), acs: Acs::Redirects },
        Bridge { address: "0000:10:03.0".into(), acs: Acs::Off },
    ];
    facts.machine.slots[0].translation = Some("DMA-FQ".into());
    facts.trials = vec![
        copied(4, 5, Outcome::Hung(30.0)),
        copied(5, 4, Outcome::Wrong("3 of 9 bytes differ".into())),
        copied(4, 5, right(10e9)),
        copied(5, 4, Outcome::Wrong("1 of 9 bytes differ".into())),
    ];
    let hang = finding(&facts, "peer-copies-hang");
    assert_eq!(hang.what, "direct copies from GPU 4 to 5 hang (nothing came of it within 30 s)");
    for part in
        ["NCCL_P2P_DISABLE=1 avoids them (over the host these copies are right)", "setpci -s 0000:10:02.0", "iommu=pt"]
    {
        assert!(hang.cure.contains(part), "{part} in {}", hang.cure);
    }
    let corrupt = finding(&facts, "peer-copies-corrupt");
    assert!(corrupt.what.contains("GPU 5 to 4 arrive with other bytes (wrong values: 3 of 9 bytes differ)"));
    assert!(!corrupt.cure.contains("are right"), "what isn't seen isn't said");
    assert!(finding(&facts, "host-copies-broken").what.contains("GPU 5 to 4"));
    assert_eq!(finding(&facts, "acs-on").weight, Weight::Advice);
    assert_eq!(finding(&facts, "iommu-translates").weight, Weight::Advice);
    assert!(!is_sound(&judge(&facts)));
    let weights: Vec<Weight> = judge(&facts).iter().map(|finding| finding.weight).collect();
    assert!(weights.is_sorted(), "the worst comes first");
}

/// Whether a sum without direct copies is right is seen and said: of the sum, and of the copies that it is made for.
#[test]
fn what_cures_sums_is_what_was_seen_to() {
    let mut facts = l20();
    let wrong = || Outcome::Wrong("rank 1".into());
    facts.trials =
        vec![copied(0, 1, wrong()), copied(0, 1, right(26e9)), summed(true, wrong()), summed(false, right(26e9))];
    assert_eq!(names(&facts), ["peer-copies-corrupt", "nccl-wrong"]);
    let copies = finding(&facts, "peer-copies-corrupt").cure;
    assert!(copies.contains("avoids them (over the host these copies are right, and so is NCCL's sum)"), "{copies}");
    assert_eq!(finding(&facts, "nccl-wrong").cure, "NCCL_P2P_DISABLE=1 cures it: with it the sum is right");
    // Wrong with it, too: told once, and nothing is promised.
    facts.trials[3].outcome = Outcome::Hung(60.0);
    assert_eq!(names(&facts), ["peer-copies-corrupt", "nccl-wrong"]);
    assert!(finding(&facts, "peer-copies-corrupt").cure.contains("but with it NCCL's sum goes wrong, too"));
    let sum = finding(&facts, "nccl-wrong").cure;
    assert!(sum.ends_with("alone doesn't cure it (with it: nothing came of it within 60 s)"), "{sum}");
    // Wrong only with it.
    facts.trials[2].outcome = right(26e9);
    assert_eq!(names(&facts), ["peer-copies-corrupt", "nccl-hangs"]);
    let what = finding(&facts, "nccl-hangs").what;
    assert!(what.starts_with("a sum by NCCL with NCCL_P2P_DISABLE=1 over all GPUs: "), "{what}");
}

#[test]
fn libraries_and_drivers_are_missed_where_they_are_needed() {
    let mut facts = l20();
    facts.gpus.libraries[1] = Library {
        name: "cublasLt".into(),
        empty: vec!["/a".into(), "/b".into()],
        cure: "pip".into(),
        ..Library::default()
    };
    let old = ("/lib/libnccl.so.2".to_owned(), "it is version 2.10.3; 2.14 or newer is needed".to_owned());
    facts.gpus.libraries[2] = Library { name: "NCCL".into(), unusable: vec![old], ..Library::default() };
    assert!(finding(&facts, "cublaslt-missing").what.contains("any of the 2 places"));
    assert!(finding(&facts, "nccl-unusable").what.contains("/lib/libnccl.so.2: it is version 2.10.3"));
    facts.gpus.devices.truncate(1);
    facts.gpus.pairs.clear();
    assert_eq!(names(&facts), ["cublaslt-missing"], "one GPU needs no NCCL");
    facts.gpus.devices.clear();
    facts.gpus.libraries.clear();
    assert!(finding(&facts, "no-driver").cure.contains("525 or newer"));
    facts.machine.container = Some("Docker".into());
    assert!(finding(&facts, "no-driver").cure.contains("--gpus all"));
    facts.gpus.refused = Some("cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY (802)".into());
    assert!(finding(&facts, "driver-refuses").cure.contains("nvidia-fabricmanager"));
    facts.gpus.cuda = Some(11_080);
    assert!(finding(&facts, "driver-old").what.contains("11.8"));
}

#[test]
fn what_gpus_say_of_themselves_is_heard() {
    let mut facts = l20();
    let health = Health {
        uncorrected: Some(2),
        held_back: vec!["heat".into()],
        watts: Some((200.0, 275.0)),
        mig: Some(true),
        nvlinks: 0,
    };
    facts.gpus.devices[3].health = Some(health);
    facts.gpus.devices[4].capability = (7, 5);
    facts.gpus.devices[5].mode = Some("prohibited".into());
    facts.machine.slots[6].link = Some(PciLink { transfers: 16e9, lanes: 4 });
    let mut found = names(&facts);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "gpu-held-back",
            "gpu-in-parts",
            "gpu-memory-errors",
            "gpu-old",
            "gpu-power-limit",
            "gpu-prohibited",
            "link-narrow"
        ]
    );
    assert!(
        finding(&facts, "link-narrow").what.starts_with("GPU 6 (")
            && finding(&facts, "gpu-memory-errors").what.contains("GPU 3")
    );
}

#[test]
fn slow_is_what_stays_below_half_of_what_should_come() {
    let mut facts = l20();
    let product = |gpu, dtype: &str, rate, telling| Trial {
        what: What::Product { gpu, dtype: dtype.into() },
        size: String::new(),
        outcome: Outcome::Right { rate, telling },
    };
    // 119.5 TFLOP/s by its data sheet, 59.3 in f32.
    facts.trials =
        vec![product(Some(0), "bf16", 60e12, true), product(Some(0), "f32", 30e12, true), copied(0, 1, right(22e9))];
    assert_eq!(judge(&facts), []);
    facts.trials =
        vec![product(Some(0), "bf16", 20e12, true), copied(0, 1, right(3e9)), product(Some(1), "bf16", 20e12, false)];
    assert_eq!(names(&facts), ["gpu-slow", "links-slow"]);
    let what = finding(&facts, "gpu-slow").what;
    assert_eq!(
        what,
        "GPU 0: bf16 product: 20.0 TFLOP/s, where 71.7 TFLOP/s should come (60 % of the L20's data sheet)"
    );
}

#[test]
fn work_that_goes_wrong_is_a_problem_with_its_place() {
    let mut facts = l20();
    let on = |gpu, outcome| Trial { what: What::Attention { gpu: Some(gpu) }, size: String::new(), outcome };
    facts.trials = vec![on(2, Outcome::Wrong("row 3".into()))];
    assert!(finding(&facts, "values-wrong").cure.contains("only this GPU"));
    facts.trials.push(on(3, Outcome::Wrong("row 3".into())));
    assert!(finding(&facts, "values-wrong").cure.contains("another version of cublasLt"));
    facts.trials = vec![on(1, Outcome::Failed("out of memory: 3 GiB".into()))];
    assert_eq!(names(&facts), ["gpu-in-use"]);
    facts.trials =
        vec![Trial { what: What::AttentionGradients { gpu: Some(2) }, ..on(2, Outcome::Wrong("keys: row 3".into())) }];
    assert!(
        finding(&facts, "values-wrong").what.starts_with("attention's gradients on GPU 2: wrong values: keys: row 3")
    );
    let sum = |outcome| summed(true, outcome);
    for (outcome, name) in [
        (Outcome::Hung(60.0), "nccl-hangs"),
        (Outcome::Wrong(String::new()), "nccl-wrong"),
        (Outcome::Failed(String::new()), "nccl-fails"),
    ] {
        facts.trials = vec![sum(outcome)];
        assert_eq!(names(&facts), [name]);
    }
}

#[test]
fn the_machine_around_gpus_is_looked_at() {
    let mut facts = l20();
    facts.machine.memory.shm = Some((64 << 20, 64 << 20));
    facts.machine.container = Some("Kubernetes".into());
    assert!(finding(&facts, "shm-small").cure.contains("emptyDir"));
    facts.machine.container = Some("Docker".into());
    let shm = finding(&facts, "shm-small");
    assert!(shm.weight == Weight::Problem && shm.cure.contains("--shm-size=1g") && shm.what.contains("may need 512"));
    facts.machine.memory.shm = None;
    let port = |name: &str, state: &str| RdmaPort { name: name.into(), state: state.into(), ..RdmaPort::default() };
    facts.machine.rdma = vec![port("mlx5_0:1", "DOWN")];
    assert_eq!(names(&facts), ["rdma-down"]);
    facts.machine.rdma.push(port("mlx5_1:1", "ACTIVE"));
    facts.machine.driver = Some(KernelDriver::default());
    facts.machine.memory.pinned = Some(8 << 20);
    assert_eq!(names(&facts), ["peermem-missing", "pinned-little"]);
    facts.machine.rdma.clear();
    facts.machine.network =
        vec![Interface { name: "eth0".into(), addresses: vec!["::1".into()], ..Interface::default() }];
    assert!(finding(&facts, "network-none").what.contains("eth0"));
    facts.machine.network[0] = Interface { allowed: true, is_device: true, ..facts.machine.network[0].clone() };
    assert_eq!(names(&facts), ["network-down"]);
    facts.machine.network[0].up = true;
    facts.machine.processor = Processor { threads: 64, quota: Some(4.0), ..Processor::default() };
    assert!(finding(&facts, "threads-many").cure.contains("RAYON_NUM_THREADS=4"));
    facts.machine.disks = vec![Disk { what: "this folder".into(), folder: "/".into(), total: 10, free: 9 }];
    assert_eq!(names(&facts), ["threads-many", "disk-full"]);
}
