//! `doctor`: machines of paper, sound and broken, each with the fake driver behind it.

use crate::common::{Place, Run};
use serde_json::Value;
use std::os::unix::fs::symlink;

/// Two cards on one host bridge.
const TWO: &str = "gpu=L20,count=2,bus=0000:17:00.0+0000:2a:00.0";

/// The doctor with fake libraries, on a machine of paper, measured for no longer than a test has time.
fn doctor(place: &Place, fake: &str, more: &[&str]) -> Run {
    let args = [&["doctor", "--time", "0.3", "--root", "machine"], more].concat();
    let mut command = place.command(&args);
    command.env("FERROTUNE_CUDA_LIBRARIES", place.path("libraries")).env("FERROTUNE_FAKE_CUDA", fake);
    place.read(command.output().unwrap())
}

/// A place with the fake libraries and the files of a server of two cards, whose bridges have Access Control Services.
fn server(acs: u16) -> Place {
    let place = Place::new();
    ferrotune_fake_cuda::install(&place.path("libraries")).unwrap();
    for (bridge, card) in [("0000:16:01.0", "0000:17:00.0"), ("0000:16:03.0", "0000:2a:00.0")] {
        let above = format!("machine/sys/devices/pci0000:16/{bridge}");
        let device = format!("{above}/{card}");
        for (file, text) in [
            ("vendor", "0x10de"),
            ("class", "0x030200"),
            ("numa_node", "0"),
            ("current_link_speed", "16.0 GT/s PCIe"),
            ("current_link_width", "16"),
            ("max_link_speed", "16.0 GT/s PCIe"),
            ("max_link_width", "16"),
            ("iommu_group/type", if acs == 0 { "identity" } else { "DMA" }),
        ] {
            place.write(&format!("{device}/{file}"), format!("{text}\n"));
        }
        let mut configuration = vec![0; 4096];
        configuration[256..260].copy_from_slice(&0x0001_000du32.to_le_bytes());
        configuration[262..264].copy_from_slice(&acs.to_le_bytes());
        place.write(&format!("{above}/config"), configuration);
        std::fs::create_dir_all(place.path("machine/sys/bus/pci/devices")).unwrap();
        let link = |name: &str, to: String| symlink(to, place.path("machine/sys/bus/pci/devices").join(name)).unwrap();
        link(card, format!("../../../devices/pci0000:16/{bridge}/{card}"));
        link(bridge, format!("../../../devices/pci0000:16/{bridge}"));
    }
    place.write("machine/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  x\n");
    place
}

fn has(run: &Run, parts: &[&str]) {
    for part in parts {
        assert!(run.out.contains(part), "{part}\nin\n{}\n{}", run.out, run.err);
    }
}

#[test]
fn a_machine_without_a_gpu_is_no_problem() {
    let place = Place::new();
    ferrotune_fake_cuda::install(&place.path("libraries")).unwrap();
    let mut command = place.command(&["doctor", "--time", "0.3", "--root", "machine"]);
    command.env("FERROTUNE_CUDA_LIBRARIES", place.path("libraries")).env("FERROTUNE_FAKE_CUDA", "count=0");
    command.env("HF_TOKEN", "hf_secret").env("NCCL_DEBUG", "INFO");
    let run = place.read(command.output().unwrap()).ok();
    assert!(run.out.starts_with(concat!("- `ferrotune` version: ", env!("CARGO_PKG_VERSION"), "\n")), "{}", run.out);
    has(
        &run,
        &[
            "- Processor: ",
            "- Disk of this folder (HERE): ",
            "- GPUs: none",
            "processor: bf16 product (",
            "processor: attention (",
            "processor: attention's gradients (",
            "GFLOP/s",
            "note: no GPU: runs use the processor",
            "no problem found",
            "- HF_TOKEN=(set)\n",
            "- NCCL_DEBUG=INFO\n",
        ],
    );
    assert!(!run.out.contains("hf_secret"), "{}", run.out);
    let (_, used) = run.out.split_once("- Instructions used: ").unwrap();
    assert!(["AVX-512", "AVX2", "portable"].iter().any(|name| used.starts_with(name)), "{}", run.out);
}

/// LLaMA-Factory's verb prints the same and never fails.
#[test]
fn env_is_the_same_report() {
    let place = Place::new();
    let mut command = place.command(&["env"]);
    let env = place.read(command.env("HF_TOKEN", "hf_secret").output().unwrap()).ok().out;
    assert!(env.starts_with(concat!("- `ferrotune` version: ", env!("CARGO_PKG_VERSION"), "\n")), "{env}");
    assert!(env.contains("- HF_TOKEN=(set)\n") && !env.contains("hf_secret"), "{env}");
    assert!(env.contains("- Instructions used: ") && env.contains("Tried:"), "{env}");
}

#[test]
fn sound_servers_are_sound() {
    let place = server(0);
    let run = doctor(&place, TWO, &[]).ok();
    has(
        &run,
        &[
            "- NVIDIA kernel driver: 550.54.15",
            "- NVIDIA driver: CUDA 12.4, HERE/libraries/",
            "- cublasLt: 12.3.4, HERE/libraries/",
            "- NCCL: 2.27.3, HERE/libraries/",
            "- GPU 0: NVIDIA L20, 45.0 GiB, compute capability 8.9, 0000:17:00.0, PCIe 4.0 x16, memory node 0",
            "2 bridges above GPUs: 2 have it switched off",
            "       1      PHB        -",
            "  ok   GPU 1: bf16 product (",
            "  ok   GPU 0: f32 product (",
            "  ok   GPU 0: attention (",
            "  ok   GPU 1: attention's gradients (",
            "  ok   2 GPUs: sum by NCCL (",
            "       0        -     25.0",
            "no problem found",
        ],
    );
    // NVLink is seen without files of the system.
    let run = doctor(&place, "gpu=H200,count=2", &["--format", "json"]).ok();
    let report: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(
        (&report["sound"], &report["facts"]["gpus"]["pairs"][0]["way"]),
        (&Value::from(true), &Value::from("nvlink"))
    );
    assert_eq!(report["facts"]["gpus"]["devices"][1]["health"]["nvlinks"], 18);
}

/// A pair that corrupts is told with what is seen to cure it; a wrong product, too.
#[test]
fn copies_that_corrupt_and_products_that_are_wrong_are_told() {
    let place = server(0b1101);
    let run = doctor(&place, &format!("{TWO},peer=0-1:corrupt,wrong=cublasLtMatmul:1,uncorrected=4"), &[]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    has(
        &run,
        &[
            "       0        -    WRONG",
            " of 16777216 bytes differ, the first at 5592405\n",
            "problem: direct copies from GPU 0 to 1 arrive with other bytes",
            "cure: NCCL_P2P_DISABLE=1 avoids them (over the host these copies are right, and so is NCCL's sum). The cause may be \
             ACS, which is on at 0000:16:01.0 and 0000:16:03.0: switch ACS off",
            "  BAD  2 GPUs: sum by NCCL (1 MiB): wrong values: rank 1: element 87381 of the sum is ",
            "  ok   2 GPUs: sum by NCCL with NCCL_P2P_DISABLE=1 (",
            "problem: a sum by NCCL over all GPUs: wrong values: rank 1: element 87381",
            "cure: NCCL_P2P_DISABLE=1 cures it: with it the sum is right",
            "The IOMMU translates GPUs' addresses: start the kernel with `iommu=pt`",
            "BAD  GPU 0: bf16 product (128 x 128 x 128): wrong values: row 0, column 0 is ",
            "problem: GPU 1 (NVIDIA L20) had 4 errors of memory",
            "advice: bridges above GPUs send peers' traffic up to the processor",
        ],
    );
    assert!(run.out.ends_with("problems found\n"), "{}", run.out);
}

/// Sums that hang where copies do are tried without such copies; nobody waits for each rank in turn.
#[test]
fn what_cures_copies_is_tried_on_sums() {
    let place = server(0);
    let run = doctor(&place, &format!("{TWO},peer=0-1:hang"), &["--patience", "8"]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    has(
        &run,
        &[
            "  BAD  2 GPUs: sum by NCCL: nothing came of it within 16 s",
            "  ok   2 GPUs: sum by NCCL with NCCL_P2P_DISABLE=1 (",
            "problem: a sum by NCCL over all GPUs: nothing came of it within 16 s",
            "cure: NCCL_P2P_DISABLE=1 cures it: with it the sum is right",
            "problem: direct copies from GPU 0 to 1 hang",
            "avoids them (over the host these copies are right, and so is NCCL's sum)",
        ],
    );
}

/// A hang is one pair's: it is told after the patience, and the other pairs are tried. cublasLt is missed at the same time.
#[test]
fn a_pair_that_hangs_and_a_library_that_is_missing_are_told() {
    let place = server(0);
    std::fs::remove_file(place.path("libraries/libcublasLt.so.12")).unwrap();
    let run = doctor(&place, &format!("{TWO},peer=0-1:hang"), &["--patience", "4"]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    has(
        &run,
        &[
            "       0        -    HANGS",
            "       1     25.0        -",
            "problem: direct copies from GPU 0 to 1 hang (nothing came of it within 4 s)",
            "(over the host these copies are right)",
            "- cublasLt: none that can be used\n    HERE/libraries: nothing there\n",
            "problem: cublasLt isn't in any of the ",
            "cure: `pip install nvidia-cublas-cu12 nvidia-nccl-cu12` brings what is missing.",
            "2 problems found",
        ],
    );
}

#[test]
fn libraries_that_cant_be_used_are_told_with_the_reason() {
    let place = server(0);
    let run = doctor(&place, &format!("{TWO},nccl=21003"), &["--format", "json"]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    let report: Value = serde_json::from_str(&run.out).unwrap();
    let problems = report["findings"].as_array().unwrap().iter().filter(|finding| finding["weight"] == "problem");
    let names: Vec<&str> = problems.filter_map(|finding| finding["name"].as_str()).collect();
    assert_eq!(names, ["nccl-unusable"], "{}", run.out);
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("it is version 2.10.3; 2.14 or newer is needed"));
    // Cards without a driver: the system's files show them.
    let none = Place::new();
    std::fs::create_dir(none.path("libraries")).unwrap();
    let mut command = none.command(&["doctor", "--time", "0.3", "--root"]);
    let run = none.read(
        command.arg(place.path("machine")).env("FERROTUNE_CUDA_LIBRARIES", none.path("libraries")).output().unwrap(),
    );
    if !run.out.contains("- NVIDIA driver: CUDA") {
        assert_eq!(run.code, Some(1), "{}", run.err);
        has(
            &run,
            &["problem: NVIDIA devices are on the bus (0000:17:00.0 and 0000:2a:00.0)", "libcuda.so.1 is missing"],
        );
    }
}

/// A sum that hangs or fails at one rank is told, and ends.
#[test]
fn sums_that_dont_come_to_an_end_are_told() {
    let place = server(0);
    let run = doctor(&place, &format!("{TWO},later=ncclAllReduce:1:6"), &[]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    has(&run, &["BAD  2 GPUs: sum by NCCL: failed: ", "remote process exited", "cure: NCCL_DEBUG=INFO says why"]);
    // It fails without direct copies, too: that is told once, and nothing is said to cure it.
    has(&run, &["NCCL_P2P_DISABLE=1 alone doesn't cure it (with it: failed: "]);
    assert_eq!(run.out.matches("problem: a sum by NCCL").count(), 1, "{}", run.out);
}

#[test]
fn wrong_options_are_told() {
    let place = Place::new();
    for (args, part) in [
        (&["doctor", "--time", "0"][..], "it isn't between 0.01 and 3600"),
        (&["doctor", "--patience", "soon"], "it isn't a number"),
        (&["doctor", "--format", "xml"], "[possible values: text, json]"),
    ] {
        let run = place.run(args);
        assert!(run.code == Some(2) && run.err.contains(part), "{}", run.err);
    }
    let run = place.run(&["examined", "everything"]);
    assert!(run.code == Some(1) && run.err.contains("this verb is `doctor`'s own"), "{}", run.err);
}
