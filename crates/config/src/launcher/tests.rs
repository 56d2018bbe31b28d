//! Environments, and what they mean.

use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn read(pairs: Pairs<'_>) -> Result<(Launch, Vec<String>), Vec<String>> {
    let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    let messages = |list: Vec<Diagnostic>| list.into_iter().map(|d| d.message).collect::<Vec<_>>();
    Launch::from_env(get).map(|(launch, notes)| (launch, messages(notes))).map_err(|e| messages(e.0))
}

/// A launch in a few words: role, master, name of the run.
fn words(pairs: Pairs<'_>) -> String {
    let (launch, _) = read(pairs).unwrap_or_else(|errors| panic!("{pairs:?}: {errors:?}"));
    let role = match launch.role {
        Role::Alone => "alone".to_owned(),
        Role::Worker(Worker { rank, world, local_rank, local_world, node, restart }) => {
            let again = if restart > 0 { format!(" again {restart}") } else { String::new() };
            format!("worker {rank}/{world}, {local_rank}/{local_world} of node {node}{again}")
        }
        Role::Agent(Agent { nodes, processes, max_restarts }) => {
            let nodes = match nodes {
                Nodes::Fixed { count, node } => format!("{node}/{count}"),
                Nodes::Elastic { min, max, hint } => {
                    format!("{min}:{max}{}", hint.map_or(String::new(), |hint| format!(" hint {hint}")))
                }
            };
            let again = if max_restarts > 0 { format!(" restarts {max_restarts}") } else { String::new() };
            format!("agent {nodes} x {processes}{again}")
        }
    };
    let master = launch.master.map_or(String::new(), |m| format!(" at {}:{}", m.host, m.port));
    role + &master + &launch.run_id.map_or(String::new(), |id| format!(" as {id}"))
}

/// Environments in one line.
fn pairs(line: &str) -> Vec<(&str, &str)> {
    line.split_whitespace().filter_map(|pair| pair.split_once('=')).collect()
}

#[test]
fn environments_mean_what_their_launchers_mean() {
    let cases: &[(&str, &str)] = &[
        // One process, by any spelling.
        ("", "alone"),
        ("FORCE_TORCHRUN=1 NNODES=1 NODE_RANK=0", "alone"),
        ("CUDA_VISIBLE_DEVICES=0,1", "alone"),
        ("FORCE_TORCHRUN=0 CUDA_VISIBLE_DEVICES=0,1", "alone"),
        ("FORCE_TORCHRUN=1 CUDA_VISIBLE_DEVICES=", "alone"),
        ("FORCE_TORCHRUN=1 CUDA_VISIBLE_DEVICES=-1", "alone"),
        ("WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 NNODES=", "alone"),
        ("WORLD_SIZE=1 RANK=0 MASTER_ADDR=h MASTER_PORT=1", "alone at h:1"),
        ("RANK=0", "alone"),
        // LLaMA-Factory's launch.
        ("FORCE_TORCHRUN=1 CUDA_VISIBLE_DEVICES=0,1", "agent 0/1 x 2"),
        ("FORCE_TORCHRUN=1 CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=1", "alone"),
        ("NPROC_PER_NODE=8", "agent 0/1 x 8"),
        ("NPROC_PER_NODE=2 MASTER_PORT=29500", "agent 0/1 x 2 at 127.0.0.1:29500"),
        ("MAX_RESTARTS=3", "agent 0/1 x 1 restarts 3"),
        (
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 MASTER_ADDR=10.128.7.1 MASTER_PORT=20000",
            "worker 0/2, 0/1 of node 0 at 10.128.7.1:20000",
        ),
        (
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_ADDR=10.128.7.1 MASTER_PORT=20000 NPROC_PER_NODE=8",
            "agent 1/2 x 8 at 10.128.7.1:20000",
        ),
        ("NNODES=2 NODE_RANK=1 MASTER_ADDR=m MASTER_PORT=20000 CUDA_VISIBLE_DEVICES=0,1,2", "agent 1/2 x 3 at m:20000"),
        (
            "NNODES=2 RANK=1 MASTER_ADDR=[fe80::1%eth0] MASTER_PORT=20000",
            "worker 1/2, 0/1 of node 1 at fe80::1%eth0:20000",
        ),
        ("NNODES=2 NODE_RANK=1 MASTER_ADDR=m MASTER_PORT=1 MAX_RESTARTS=1", "agent 1/2 x 1 restarts 1 at m:1"),
        // Elastic.
        (
            "FORCE_TORCHRUN=1 RDZV_ID=r1 MIN_NNODES=1 MAX_NNODES=3 MAX_RESTARTS=3 MASTER_ADDR=m MASTER_PORT=29500",
            "agent 1:3 x 1 restarts 3 at m:29500 as r1",
        ),
        (
            "RDZV_ID=r1 NNODES=1:3 RDZV_ENDPOINT=m:400 NODE_RANK=2 NPROC_PER_NODE=2",
            "agent 1:3 hint 2 x 2 at m:400 as r1",
        ),
        ("RDZV_ID=r1 NNODES=2 RDZV_ENDPOINT=m", "agent 2:2 x 1 at m:29400 as r1"),
        ("RDZV_ID=r1 NNODES=2 MIN_NNODES=1 MAX_NNODES=3 RDZV_ENDPOINT=[::1]:5", "agent 1:3 x 1 at ::1:5 as r1"),
        ("RDZV_ID=r1", "agent 1:1 x 1 as r1"),
        // torchrun and this program's own agent; what else stands in the environment is theirs.
        (
            "RANK=11 WORLD_SIZE=16 LOCAL_RANK=3 LOCAL_WORLD_SIZE=8 GROUP_RANK=1 MASTER_ADDR=m MASTER_PORT=5 NNODES=7 \
             NPROC_PER_NODE=4 NODE_RANK=0 MAX_RESTARTS=3 RDZV_ID=r1 TORCHELASTIC_RESTART_COUNT=2 TORCHELASTIC_RUN_ID=r1",
            "worker 11/16, 3/8 of node 1 again 2 at m:5 as r1",
        ),
        (
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=5 \
             TORCHELASTIC_RUN_ID=none",
            "worker 1/2, 1/2 of node 0 at 127.0.0.1:5",
        ),
        // Slurm.
        (
            "SLURM_PROCID=9 SLURM_NTASKS=16 SLURM_STEP_NUM_TASKS=16 SLURM_LOCALID=1 SLURM_NTASKS_PER_NODE=8 SLURM_NODEID=1 \
             SLURM_NNODES=2 SLURM_STEP_NODELIST=gpu[07-08] SLURM_JOB_ID=123456 SLURM_STEP_ID=0",
            "worker 9/16, 1/8 of node 1 at gpu07:23456 as slurm-123456.0",
        ),
        (
            "SLURM_PROCID=2 SLURM_NTASKS=3 SLURM_STEPID=1 SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE=2,1 SLURM_NODEID=1 \
             SLURM_NNODES=2 SLURM_JOB_NODELIST=a,b SLURM_JOB_ID=7 MASTER_ADDR=m",
            "worker 2/3, 0/1 of node 1 at m:20108 as slurm-7.1",
        ),
        (
            "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 SLURM_NODEID=1 SLURM_STEP_NUM_NODES=2 \
             SLURM_STEP_NODELIST=n[1-2] SLURM_JOB_ID=7 NPROC_PER_NODE=8 MAX_RESTARTS=2",
            "agent 1/2 x 8 restarts 2 at n1:20007 as slurm-7.0",
        ),
        (
            "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 SLURM_NODEID=1 SLURM_STEP_NUM_NODES=2 \
             SLURM_STEP_NODELIST=n[1-2] SLURM_JOB_ID=7 FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_ADDR=n1 \
             MASTER_PORT=29500 CUDA_VISIBLE_DEVICES=0,1,2,3",
            "agent 1/2 x 4 at n1:29500 as slurm-7.0",
        ),
        ("SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_STEP_NUM_TASKS=1 SLURM_JOB_ID=7", "alone"),
        // A shell of `salloc`, and a batch script without `srun`.
        ("SLURM_JOB_ID=7 SLURM_NNODES=2 SLURM_JOB_NODELIST=n[1-2]", "alone"),
        ("SLURM_JOB_ID=7 SLURM_NTASKS=16 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0", "alone"),
        ("SLURM_JOB_ID=7 SLURM_NTASKS=16 SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", "alone"),
        // MPI; Open MPI's own daemons are tasks of Slurm's.
        (
            "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
             MASTER_ADDR=m MASTER_PORT=5 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_NODEID=0",
            "worker 3/4, 1/2 of node 1 at m:5",
        ),
        (
            "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
             PMIX_NAMESPACE=1",
            "worker 1/2, 1/2 of node 0 at 127.0.0.1:20049 as 1",
        ),
        (
            "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1 MASTER_ADDR=m MASTER_PORT=5 NPROC_PER_NODE=4",
            "agent 1/2 x 4 at m:5",
        ),
        ("PMI_RANK=1 PMI_SIZE=2 MASTER_ADDR=m MASTER_PORT=5", "worker 1/2, 0/1 of node 1 at m:5"),
        (
            "PMI_RANK=1 PMI_SIZE=2 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1 SLURM_NODEID=0 \
             SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=n1 SLURM_JOB_ID=7",
            "worker 1/2, 1/2 of node 0 at n1:20007 as slurm-7.0",
        ),
        ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 NPROC_PER_NODE=2", "agent 0/1 x 2"),
        // Kubernetes: an indexed job, a PyTorchJob without and with processes a node, an elastic one.
        (
            "JOB_COMPLETION_INDEX=1 NNODES=2 NPROC_PER_NODE=8 MASTER_ADDR=j-0-0.j MASTER_PORT=29500",
            "agent 1/2 x 8 at j-0-0.j:29500",
        ),
        ("JOB_COMPLETION_INDEX=1", "alone"),
        (
            "WORLD_SIZE=2 RANK=1 MASTER_ADDR=j-master-0 MASTER_PORT=23456",
            "worker 1/2, 0/1 of node 1 at j-master-0:23456",
        ),
        (
            "WORLD_SIZE=2 RANK=1 MASTER_ADDR=j-master-0 MASTER_PORT=23456 NPROC_PER_NODE=8",
            "agent 1/2 x 8 at j-master-0:23456",
        ),
        (
            "FORCE_TORCHRUN=1 WORLD_SIZE=2 RANK=1 NNODES=2 NODE_RANK=1 NPROC_PER_NODE=8 MASTER_ADDR=m MASTER_PORT=23456",
            "agent 1/2 x 8 at m:23456",
        ),
        (
            "WORLD_SIZE=16 RANK=1 PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=8 PET_MASTER_ADDR=m PET_MASTER_PORT=29500",
            "agent 1/2 x 8 at m:29500",
        ),
        (
            "PET_NNODES=1:3 PET_RDZV_ID=j PET_RDZV_ENDPOINT=m:23456 PET_RDZV_BACKEND=c10d PET_MAX_RESTARTS=5 \
             PET_NPROC_PER_NODE=auto",
            "agent 1:3 x 1 restarts 5 at m:23456 as j",
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(words(&pairs(line)), *expected, "{line}");
    }
}

#[test]
fn notes_say_what_is_read_otherwise() {
    let cases: &[(&str, &[&str])] = &[
        ("NNODES=2 NODE_RANK=1 MASTER_ADDR=m MASTER_PORT=5 FORCE_TORCHRUN=1", &[]),
        ("RANK=0", &["RANK is taken for NODE_RANK=0"]),
        (
            "FORCE_TORCHRUN=yes CUDA_VISIBLE_DEVICES=0,1",
            &[
                "FORCE_TORCHRUN is on; LLaMA-Factory takes 'yes' for off",
                "CUDA_VISIBLE_DEVICES names 2 devices, so 2 processes train; this build lets them share the processor",
            ],
        ),
        ("MAX_RESTARTS=2", &["MAX_RESTARTS is obeyed; LLaMA-Factory does so with RDZV_ID only"]),
        ("MIN_NNODES=1", &["MIN_NNODES has no effect without RDZV_ID"]),
        (
            "NNODES=2 MASTER_ADDR=m MASTER_PORT=5",
            &["NODE_RANK is not set: this machine is taken for number 0, the master"],
        ),
        (
            "NNODES=2 NODE_RANK=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=5",
            &["MASTER_ADDR is 127.0.0.1, by which every machine means itself"],
        ),
        (
            "FORCE_TORCHRUN=1 MASTER_ADDR=m MASTER_PORT=5",
            &["NNODES is not set, and MASTER_ADDR is: this machine trains alone"],
        ),
        ("FORCE_TORCHRUN=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=5", &[]),
        ("NODE_RANK=0", &["NNODES is not set, and NODE_RANK is: this machine trains alone"]),
        ("WORLD_SIZE=1 RANK=0 MASTER_ADDR=m MASTER_PORT=5", &[]),
        (
            "NNODE=2 NODERANK=1 MASTER_IP=m",
            &[
                "NNODE is set, and nothing reads it",
                "NODERANK is set, and nothing reads it",
                "MASTER_IP is set, and nothing reads it",
            ],
        ),
        ("NNODES=1 NUM_NODES=2", &[]),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=m MASTER_PORT=5", &[]),
        (
            "WORLD_SIZE=2 RANK=0 MASTER_ADDR=m MASTER_PORT=5 NPROC_PER_NODE=4",
            &["WORLD_SIZE is taken for NNODES=2: 4 processes are started on each machine"],
        ),
        (
            "SLURM_NTASKS=16 SLURM_PROCID=0",
            &["SLURM_NTASKS is 16, but `srun` did not start this process: it trains alone"],
        ),
        (
            "SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=1 SLURM_LOCALID=0 SLURM_NODEID=1 SLURM_STEP_NUM_NODES=2 SLURM_JOB_ID=1 \
             SLURM_STEP_NODELIST=a,b SLURM_DISTRIBUTION=cyclic MAX_RESTARTS=1",
            &[
                "SLURM_DISTRIBUTION deals neighbouring ranks to different machines",
                "MAX_RESTARTS has no effect: srun started the processes and would have to start them again",
            ],
        ),
        (
            "NCCL_IB_DISABLE=0 NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth1",
            &[
                "NCCL_IB_DISABLE is 0, but only GPUs use InfiniBand, through NCCL: all else goes over TCP",
                "GLOO_SOCKET_IFNAME is not used: NCCL_SOCKET_IFNAME names 'eth0'",
            ],
        ),
        ("NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0", &[]),
    ];
    for (line, expected) in cases {
        assert_eq!(read(&pairs(line)).unwrap().1, *expected, "{line}");
    }
}

#[test]
fn nonsense_and_contradictions_are_errors_and_come_at_once() {
    let cases: &[(&str, &[&str])] = &[
        (
            "NNODES=2 NODE_RANK=0",
            &[
                "MASTER_ADDR is not set, and there are 2 machines",
                "MASTER_PORT is not set, and there are 2 machines: each would choose another",
            ],
        ),
        ("NNODES=1:3", &["NNODES is '1:3', a range, and RDZV_ID is not set"]),
        ("NPROC_PER_NODE=0", &["NPROC_PER_NODE is 0"]),
        ("NPROC_PER_NODE=100000", &["NPROC_PER_NODE is 100000; 1024 is the most"]),
        ("RANK=1", &["RANK is 1, but there is 1 machine"]),
        ("NNODES=2 NODE_RANK=2 MASTER_ADDR=m MASTER_PORT=5", &["NODE_RANK is 2, but there are 2 machines"]),
        ("MASTER_PORT=70000", &["MASTER_PORT is '70000', which is no port"]),
        ("MASTER_ADDR=m:5 MASTER_PORT=5", &["MASTER_ADDR is 'm:5', an address with a port"]),
        ("MASTER_ADDR=tcp://m", &["MASTER_ADDR is 'tcp://m', which is no name and no address of a machine"]),
        ("MASTER_ADDR=a/b", &["MASTER_ADDR is 'a/b', which is no name and no address of a machine"]),
        (
            "NNODES=x NODE_RANK=-1 MAX_RESTARTS=often",
            &[
                "NNODES is 'x', not a whole number",
                "NODE_RANK is '-1', not a whole number",
                "MAX_RESTARTS is 'often', not a whole number",
            ],
        ),
        ("NNODES=2 PET_NNODES=3 NODE_RANK=0 MASTER_ADDR=m MASTER_PORT=5", &["NNODES is 2, but PET_NNODES is 3"]),
        (
            "WORLD_SIZE=4",
            &[
                "WORLD_SIZE is set without RANK: which of the processes is this one?",
                "MASTER_ADDR is not set, and there are 4 machines",
                "MASTER_PORT is not set, and there are 4 machines: each would choose another",
            ],
        ),
        (
            "WORLD_SIZE=5 RANK=0 NNODES=2 NPROC_PER_NODE=2 MASTER_ADDR=m MASTER_PORT=5",
            &["WORLD_SIZE is 5, but NNODES is 2, of 2 processes each"],
        ),
        (
            "WORLD_SIZE=4 RANK=4 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=m MASTER_PORT=5",
            &["LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2", "RANK is 4, but WORLD_SIZE is 4"],
        ),
        (
            "WORLD_SIZE=2 RANK=1 LOCAL_RANK=1",
            &[
                "MASTER_ADDR is not set, and torchrun started 2 processes",
                "MASTER_PORT is not set, and torchrun started 2 processes: each would choose another",
            ],
        ),
        ("RDZV_ID=r NNODES=3:1 MASTER_ADDR=m MASTER_PORT=5", &["NNODES asks for at least 3 machines and at most 1"]),
        ("RDZV_ID=r NNODES=1: RDZV_ENDPOINT=m", &["NNODES is '1:', neither a number of machines nor a range of them"]),
        ("RDZV_ID=r MIN_NNODES=1", &["MIN_NNODES is set without MAX_NNODES"]),
        (
            "RDZV_ID=r MIN_NNODES=2 MAX_NNODES=3 NNODES=1 RDZV_ENDPOINT=m:x",
            &["NNODES is 1, but MIN_NNODES and MAX_NNODES are 2 and 3", "RDZV_ENDPOINT is 'm:x', whose port is none"],
        ),
        (
            "RDZV_ID=r NNODES=1:2",
            &[
                "MASTER_ADDR is not set, and there are up to 2 machines",
                "MASTER_PORT is not set, and there are up to 2 machines: each would choose another",
            ],
        ),
        (
            "SLURM_STEP_NUM_TASKS=16 SLURM_PROCID=8 SLURM_LOCALID=0 SLURM_NODEID=1 SLURM_STEP_NUM_NODES=2 SLURM_JOB_ID=1 \
             SLURM_STEP_NODELIST=a,b NNODES=1 NODE_RANK=0 NPROC_PER_NODE=4",
            &[
                "NNODES is 1, but srun started processes on 2 machines",
                "NODE_RANK is 0, but this is machine 1 of srun's",
                "NPROC_PER_NODE is 4, but srun started 8 processes on this machine",
            ],
        ),
        (
            "SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=1 SLURM_STEP_NODELIST=a[ SLURM_JOB_ID=1",
            &[
                "SLURM_STEP_NODELIST is 'a[', which is no list of machines",
                "MASTER_ADDR is not set, and srun started 2 processes",
            ],
        ),
        (
            "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1 \
             MASTER_ADDR=m",
            &[
                "OMPI_COMM_WORLD_RANK is 2, but OMPI_COMM_WORLD_SIZE is 2",
                "MASTER_PORT is not set, and mpirun started 2 processes: each would choose another",
            ],
        ),
        ("NCCL_SOCKET_IFNAME=^ GLOO_SOCKET_IFNAME=", &["NCCL_SOCKET_IFNAME is '^', which names no network interface"]),
    ];
    for (line, expected) in cases {
        assert_eq!(read(&pairs(line)).unwrap_err(), *expected, "{line}");
    }
}

#[test]
fn every_error_has_a_cure_and_a_variable_of_the_table() {
    for line in ["NNODES=2 NODE_RANK=x", "WORLD_SIZE=2 RANK=9 LOCAL_RANK=9", "RDZV_ID=r NNODES=2:x MASTER_PORT=0"] {
        let pairs = pairs(line);
        let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        for error in Launch::from_env(get).unwrap_err().0 {
            let name = error.file.strip_prefix("environment variable ").unwrap();
            assert!(env::ALL.iter().any(|(known, _)| *known == name), "{error}");
            assert!(error.help.is_some(), "{error}");
        }
    }
}

#[test]
fn a_workers_variables_make_that_worker() {
    let master = Master { host: "10.0.0.1".into(), port: 29500 };
    let worker = Worker { rank: 9, world: 12, local_rank: 1, local_world: 4, node: 2, restart: 3 };
    let variables = worker.variables(&master);
    // What the agent itself was started with stays in the environment of its workers.
    let inherited = [("NNODES", "3"), ("NPROC_PER_NODE", "4"), ("RDZV_ID", "r"), ("SLURM_STEP_NUM_TASKS", "3")];
    let get = |name: &str| {
        let own = variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        own.or_else(|| inherited.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    };
    let (launch, notes) = Launch::from_env(get).unwrap();
    assert_eq!((launch.role, launch.master, notes), (Role::Worker(worker), Some(master), vec![]));
}

#[test]
fn interfaces_are_beginnings_whole_names_or_all_but_some() {
    let allowed = |line: &str| {
        let (launch, _) = read(&pairs(line)).unwrap();
        let interfaces = launch.interfaces.unwrap();
        ["lo", "eth0", "eth01", "docker0"].into_iter().filter(|name| interfaces.allows(name)).collect::<Vec<_>>()
    };
    assert_eq!(allowed("NCCL_SOCKET_IFNAME=eth"), ["eth0", "eth01"]);
    assert_eq!(allowed("NCCL_SOCKET_IFNAME==eth0,lo"), ["lo", "eth0"]);
    assert_eq!(allowed("NCCL_SOCKET_IFNAME=^docker,lo"), ["eth0", "eth01"]);
    assert_eq!(allowed("NCCL_SOCKET_IFNAME=^=eth0"), ["lo", "eth01", "docker0"]);
    assert_eq!(allowed("GLOO_SOCKET_IFNAME=eth0"), ["eth0"]);
}

#[test]
fn a_token_is_never_shown() {
    let (launch, _) = read(&[("FERROTUNE_JOB_TOKEN", "s3cret words")]).unwrap();
    assert!(!format!("{launch:?}").contains("s3cret"));
    assert_eq!(launch.token.unwrap().as_bytes(), b"s3cret words");
}
