//! What goes wrong on a GPU is a sticky fault with its operands: no memory, a call that fails, a kernel that isn't there.

use super::gpus::{fresh, open, pooled, strict};
use ferrotune_tensor::cuda::Options;
use ferrotune_tensor::{DType, Device, Fault, Kind, Tensor, ops};

#[test]
fn no_memory_is_told_by_kind() {
    for separate in [true, false] {
        let options = Options { device: fresh("memory=70000000"), separate, ..Options::default() };
        let gpu = open(&options);
        let held = gpu.zeros([100_000], DType::F32, Kind::Weight);
        let more = gpu.empty([40_000_000], DType::F32, Kind::Act);
        let mut live = [0; 8];
        live[Kind::Weight as usize] = 400_000;
        let fault = Fault::OutOfMemory { asked: 160_000_000, kind: Kind::Act, live };
        let told = "out of memory: 152.6 MiB for activations were refused; in use were 390.6 KiB: 390.6 KiB of weights";
        assert_eq!(fault.to_string(), told);
        assert_eq!(gpu.check(), Err(fault));
        // The rest runs through.
        more.zero();
        ops::copy(&held, &held);
        assert!(more.to_f32().is_empty() && !gpu.executes());
        // And goes on when the memory that was too much isn't asked for.
        drop(more);
        gpu.recover();
        assert!(held.to_f32().iter().all(|x| *x == 0.0) && held.to_f32().len() == 100_000);
        assert_eq!(gpu.check(), Ok(()));
    }
}

#[test]
fn the_planned_memory_is_taken_at_once_and_more_is_found_piece_by_piece() {
    let options = Options { device: fresh("memory=150000000"), reserve: 40_000_000, ..Options::default() };
    let gpu = open(&options);
    let tensors: Vec<Tensor> = (0..8).map(|_| gpu.zeros([2_500_000], DType::F32, Kind::Act)).collect();
    assert_eq!(gpu.check(), Ok(()));
    assert!(tensors.iter().all(|tensor| tensor.to_f32().iter().all(|x| *x == 0.0)));
}

/// What a run measures before it knows its plan isn't in the way of the plan.
#[test]
fn memory_that_nobody_uses_any_more_is_there_for_the_plan() {
    let gpu = open(&Options { device: fresh("memory=150000000"), ..Options::default() });
    drop(gpu.zeros([15_000_000], DType::F32, Kind::Act));
    assert_eq!(gpu.reserve(100_000_000), Ok(()));
    assert_eq!(gpu.zeros([25_000_000], DType::F32, Kind::Act).to_f32().len(), 25_000_000);
}

/// A plan that can't be had is no fault of the device, and what was taken for it goes back.
#[test]
fn another_plan_may_be_tried_where_one_is_refused() {
    let gpu = open(&Options { device: fresh("memory=150000000"), ..Options::default() });
    let free = gpu.free_memory();
    let refused = Fault::OutOfMemory { asked: 200_000_000, kind: Kind::Work, live: [0; 8] };
    assert_eq!(gpu.reserve(200_000_000), Err(refused));
    assert_eq!(gpu.reserve(100_000_000), Ok(()));
    assert!(gpu.free_memory() < free);
    gpu.give_back();
    assert_eq!((gpu.free_memory(), gpu.check()), (free, Ok(())));
    // What is in use stays.
    let held = gpu.zeros([1000], DType::F32, Kind::Act);
    gpu.give_back();
    assert_eq!(held.to_f32().len(), 1000);
}

fn fails(settings: &str, work: impl Fn(&Device)) -> Fault {
    let gpu = strict(settings);
    work(&gpu);
    gpu.check().expect_err("a fault")
}

#[test]
fn a_call_that_fails_is_named_with_its_code() {
    let add = |gpu: &Device| {
        let (x, y) = (gpu.zeros([64], DType::F32, Kind::Act), gpu.zeros([64], DType::F32, Kind::Act));
        ops::add_into(&x, &y);
        ops::add_into(&x, &y);
        assert!(x.to_f32().is_empty());
    };
    let text = fails("fail=cuLaunchKernel:2", add).to_string();
    assert_eq!(text, "the GPU: cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED (719)");
    // A code that no enumeration knows stays a number.
    let text = fails("fail=cuMemcpyDtoHAsync_v2:1:9999", add).to_string();
    let known = fails("fail=cuLaunchKernel:1:700", add).to_string();
    assert!(known.ends_with("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{known}");
    if text.contains("9999") {
        assert_eq!(text, "the GPU: cuMemcpyDtoHAsync_v2 failed: a code without a name (9999)");
    }
}

#[test]
fn shapes_without_kernels_are_named() {
    let gpu = pooled("");
    let (x, w) = (gpu.zeros([2, 8], DType::F32, Kind::Act), gpu.zeros([2, 8], DType::Bf16, Kind::Act));
    ops::add_into(&x, &w);
    assert_eq!(gpu.check(), Err(Fault::NoKernel("a sum of f32 and bf16".into())));
    // Types that no kernel takes, and sizes beyond 32 bits, end as faults with the kernel's name, not as panics.
    let gpu = pooled("");
    let numbers = gpu.zeros([4], DType::U32, Kind::Act);
    ops::add_into(&numbers, &numbers);
    assert_eq!(gpu.check(), Err(Fault::NoKernel("`add_u32`".into())));
    assert_eq!(gpu.check().unwrap_err().to_string(), "`add_u32` has no kernel for GPUs yet");
}
