//! The ready files under `deploy/`: they are what their schemas want, and what they start is the run that they are for.

use super::*;
use crate::tree::{self, Data, Node};
use std::path::{Path, PathBuf};
use std::process::Command;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

fn manifest(name: &str) -> Node {
    let text = std::fs::read_to_string(file(name)).unwrap();
    tree::parse(&text, 0).unwrap_or_else(|fault| panic!("{name}: {}", fault.message)).root.unwrap()
}

/// Fields of Kubernetes' objects that these files use, with those that must be there marked `!`; a name with dots is the
/// place of an object, `[]` an item of a list. From the API reference of `batch/v1`, `core/v1`, JobSet `v1alpha2` and Kubeflow's
/// training operator `v1`.
const SCHEMA: &[(&str, &str)] = &[
    ("", "apiVersion! kind! metadata! spec!"),
    ("metadata", "name! namespace labels annotations"),
    (
        "JobSet.spec",
        "replicatedJobs! network failurePolicy successPolicy startupPolicy suspend ttlSecondsAfterFinished",
    ),
    ("JobSet.spec.network", "enableDNSHostnames subdomain publishNotReadyAddresses"),
    ("JobSet.spec.failurePolicy", "maxRestarts restartStrategy rules"),
    ("JobSet.spec.replicatedJobs[]", "name! template! replicas dependsOn groupName"),
    ("JobSet.spec.replicatedJobs[].template", "spec! metadata"),
    ("JobSet.spec.replicatedJobs[].template.spec", "template! parallelism completions completionMode backoffLimit"),
    ("JobSet.spec.replicatedJobs[].template.spec.template", "spec! metadata"),
    ("PyTorchJob.spec", "pytorchReplicaSpecs! runPolicy elasticPolicy nprocPerNode"),
    ("PyTorchJob.spec.pytorchReplicaSpecs", "Master Worker!"),
    ("PyTorchJob.spec.pytorchReplicaSpecs.Master", "template! replicas restartPolicy"),
    ("PyTorchJob.spec.pytorchReplicaSpecs.Worker", "template! replicas restartPolicy"),
    ("PyTorchJob.spec.pytorchReplicaSpecs.Master.template", "spec! metadata"),
    ("PyTorchJob.spec.pytorchReplicaSpecs.Worker.template", "spec! metadata"),
    ("pod", "containers! volumes restartPolicy nodeSelector tolerations hostNetwork"),
    ("pod.containers[]", "name! image! command args env ports resources volumeMounts"),
    ("pod.containers[].env[]", "name! value valueFrom"),
    ("pod.containers[].ports[]", "containerPort! name protocol"),
    ("pod.containers[].resources", "limits requests"),
    ("pod.containers[].volumeMounts[]", "name! mountPath! readOnly subPath"),
    ("pod.volumes[]", "name! configMap persistentVolumeClaim emptyDir"),
    ("pod.volumes[].configMap", "name! items"),
    ("pod.volumes[].persistentVolumeClaim", "claimName! readOnly"),
    ("pod.volumes[].emptyDir", "medium sizeLimit"),
];

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Data::Map(pairs) = &node.data else { return None };
    pairs.iter().find(|(key, _)| key.text == name).map(|(_, value)| value)
}

fn text(node: &Node) -> &str {
    if let Data::Scalar { text, .. } = &node.data { text } else { panic!("no text") }
}

fn items(node: &Node) -> &[Node] {
    if let Data::List(items) = &node.data { items } else { panic!("no list") }
}

/// Checks every object against its row.
fn check(node: &Node, place: &str, kind: &str) {
    match &node.data {
        Data::List(items) => items.iter().for_each(|item| check(item, &format!("{place}[]"), kind)),
        Data::Map(pairs) if !place.ends_with("limits") && !place.ends_with("labels") => {
            let (_, row) = SCHEMA.iter().find(|(of, _)| *of == place).unwrap_or_else(|| panic!("no row for {place}"));
            let allowed: Vec<&str> = row.split(' ').map(|name| name.trim_end_matches('!')).collect();
            for name in row.split(' ').filter_map(|name| name.strip_suffix('!')) {
                assert!(field(node, name).is_some(), "{place} has no {name}");
            }
            for (key, value) in pairs {
                assert!(allowed.contains(&key.text.as_str()), "{place} has no field {}", key.text);
                let below = if place.is_empty() { key.text.clone() } else { format!("{place}.{}", key.text) };
                // A pod is the same wherever it stands.
                let below = match (below.as_str(), kind) {
                    ("spec", kind) => format!("{kind}.spec"),
                    (path, _) if path.ends_with(".template.spec") && field(value, "containers").is_some() => {
                        "pod".into()
                    }
                    _ => below,
                };
                check(value, &below, kind);
            }
        }
        _ => {}
    }
}

/// The variables of a pod's container.
fn variables(pod: &Node) -> Vec<(String, String)> {
    let container = &items(field(pod, "containers").unwrap())[0];
    let pair = |entry: &Node| {
        (text(field(entry, "name").unwrap()).to_owned(), text(field(entry, "value").unwrap()).to_owned())
    };
    items(field(container, "env").unwrap()).iter().map(pair).collect()
}

fn role(variables: &[(String, String)], more: &[(&str, &str)]) -> (Role, Option<Master>) {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let all: Vec<(String, String)> = variables.iter().cloned().chain(more).collect();
    let (launch, _) = Launch::from_env(|name| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())).unwrap();
    (launch.role, launch.master)
}

fn machine(node: usize) -> Role {
    Role::Agent(Agent { nodes: Nodes::Fixed { count: 2, node }, processes: 8, max_restarts: 3 })
}

#[test]
fn the_jobset_is_two_machines_of_eight() {
    let set = manifest("kubernetes/jobset.yaml");
    check(&set, "", "JobSet");
    let spec = field(&set, "spec").unwrap();
    let job = &items(field(spec, "replicatedJobs").unwrap())[0];
    let jobs = field(field(job, "template").unwrap(), "spec").unwrap();
    let pod = field(field(jobs, "template").unwrap(), "spec").unwrap();
    assert_eq!(
        [text(field(jobs, "completions").unwrap()), text(field(jobs, "completionMode").unwrap())],
        ["2", "Indexed"]
    );
    // The name of the first pod: <jobset>-<job>-<replica>-<index>.<subdomain>.
    let name = |node: &Node| text(field(node, "name").unwrap()).to_owned();
    let first = format!("{0}-{1}-0-0.{0}", name(field(&set, "metadata").unwrap()), name(job));
    for node in 0..2 {
        let (role, master) = role(&variables(pod), &[("NODE_RANK", &node.to_string())]);
        assert_eq!((role, master), (machine(node), Some(Master { host: first.clone(), port: 20000 })));
    }
    let container = &items(field(pod, "containers").unwrap())[0];
    let command = text(&items(field(container, "command").unwrap())[2]);
    assert!(command.starts_with("NODE_RANK=$JOB_COMPLETION_INDEX exec ferrotune train "), "{command}");
}

#[test]
fn the_pytorchjob_is_two_machines_of_eight() {
    let job = manifest("kubernetes/pytorchjob.yaml");
    check(&job, "", "PyTorchJob");
    let replicas = field(field(&job, "spec").unwrap(), "pytorchReplicaSpecs").unwrap();
    for (node, name) in ["Master", "Worker"].into_iter().enumerate() {
        let pod = field(field(field(replicas, name).unwrap(), "template").unwrap(), "spec").unwrap();
        // What the operator sets.
        let rank = node.to_string();
        let operator =
            [("MASTER_ADDR", "ferrotune-master-0"), ("MASTER_PORT", "23456"), ("WORLD_SIZE", "2"), ("RANK", &rank)];
        let (role, master) = role(&variables(pod), &operator);
        assert_eq!((role, master.unwrap().host.as_str()), (machine(node), "ferrotune-master-0"));
    }
}

#[test]
fn batch_scripts_are_sound_and_start_a_rank_a_task() {
    for (name, tasks) in [("slurm/train.sbatch", 8), ("slurm/train-cpu.sbatch", 1)] {
        let script = std::fs::read_to_string(file(name)).unwrap();
        assert!(Command::new("bash").arg("-n").arg(file(name)).status().unwrap().success());
        assert!(script.starts_with("#!/bin/bash\n"), "{name}");
        let option = |key: &str| {
            let line =
                script.lines().find_map(|line| line.strip_prefix("#SBATCH --")?.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{name} has no {key}")).to_owned()
        };
        assert_eq!([option("nodes"), option("ntasks-per-node")], ["2".to_owned(), tasks.to_string()]);
        let world = 2 * tasks;
        for rank in [0, world - 1] {
            let number = |n: usize| n.to_string();
            let slurm: Vec<(String, String)> = [
                ("SLURM_PROCID", number(rank)),
                ("SLURM_NTASKS", number(world)),
                ("SLURM_LOCALID", number(rank % tasks)),
                ("SLURM_NTASKS_PER_NODE", number(tasks)),
                ("SLURM_NODEID", number(rank / tasks)),
                ("SLURM_NNODES", "2".into()),
                ("SLURM_JOB_NUM_NODES", "2".into()),
                ("SLURM_STEP_ID", "0".into()),
                ("SLURM_STEP_NUM_TASKS", number(world)),
                ("SLURM_STEP_NUM_NODES", "2".into()),
                ("SLURM_STEP_TASKS_PER_NODE", format!("{tasks}(x2)")),
                ("SLURM_STEP_NODELIST", "gpu[03-04]".into()),
                ("SLURM_JOB_NODELIST", "gpu[03-04]".into()),
                ("SLURM_JOB_ID", "4711".into()),
            ]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
            let (role, master) = role(&slurm, &[]);
            let Role::Worker(worker) = role else { panic!("{name}: {role:?}") };
            assert_eq!(
                (worker.rank, worker.world, worker.local_world, worker.node),
                (rank, world, tasks, rank / tasks)
            );
            assert_eq!(master.unwrap().host, "gpu03");
        }
    }
}
