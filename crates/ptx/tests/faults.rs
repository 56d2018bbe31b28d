//! What the interpreter must notice, each in a kernel of a few lines.

use ferrotune_ptx::{Arg, Call, Cause, Fault, Memory, Module, Options, Stats};

/// A kernel with two pointers; `body` begins with %rd1 and %rd2 loaded and the thread in %r1.
fn module(body: &str) -> Module {
    let text = format!(
        ".version 8.1\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 dyn[];\n\
         .visible .entry k(\n.param .u64 k_a,\n.param .u64 k_b\n)\n{{\n\
         .reg .pred %p<4>;\n.reg .b32 %r<20>;\n.reg .f32 %f<20>;\n.reg .b64 %rd<10>;\n\
         ld.param.u64 %rd1, [k_a];\nld.param.u64 %rd2, [k_b];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd1, %rd3;\nadd.s64 %rd5, %rd2, %rd3;\n{body}\nret;\n}}\n"
    );
    Module::parse(&text).expect("forms that are known")
}

/// Runs it on `words` inputs 0, 1, 2, ... and as many outputs.
fn run(body: &str, (grid, block): (u32, u32), words: usize) -> Result<(Vec<u32>, Stats), Fault> {
    let mut memory = Memory::new();
    let (a, b) = (memory.alloc(4 * words), memory.alloc(4 * words));
    memory.write(a, &(0..words as u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())?;
    let args = [Arg::U64(a), Arg::U64(b)];
    let call = Call { kernel: "k", grid: grid.into(), block: block.into(), shared_bytes: 512, args: &args };
    let module = module(body);
    let stats = (1..=3)
        .map(|seed| module.launch(&call, &mut memory, &Options { seed, limit: 100_000 }))
        .collect::<Result<Vec<_>, _>>()?;
    let mut out = vec![0; 4 * words];
    memory.read(b, &mut out)?;
    Ok((out.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect(), stats[0]))
}

fn cause(body: &str, shape: (u32, u32), words: usize) -> Cause {
    match run(body, shape, words).expect_err("a fault") {
        Fault::Run { cause, .. } | Fault::Host(cause) => cause,
        other => panic!("{other}"),
    }
}

#[test]
fn lanes_that_part_meet_again() {
    // Odd lanes loop, then all add up with the whole warp.
    let body = "and.b32 %r2, %r1, 1;\nmov.u32 %r3, %r1;\nsetp.eq.s32 %p1, %r2, 0;\n@%p1 bra EVEN;\nLOOP:\nadd.s32 %r3, %r3, 1;\n\
        setp.lt.s32 %p2, %r3, 100;\n@%p2 bra LOOP;\nEVEN:\nshfl.sync.bfly.b32 %r4|%p3, %r3, 1, 31, -1;\n\
        add.s32 %r5, %r4, %r3;\nst.global.u32 [%rd5], %r5;";
    let (out, _) = run(body, (1, 32), 32).unwrap();
    assert_eq!(out, (0..32).map(|i| 100 + (i & !1)).collect::<Vec<u32>>());
}

#[test]
fn lanes_with_the_same_word_find_each_other() {
    let body = "and.b32 %r2, %r1, 3;\nmatch.any.sync.b32 %r3, %r2, -1;\nst.global.u32 [%rd5], %r3;";
    let (out, _) = run(body, (1, 32), 32).unwrap();
    assert_eq!(out, (0..32).map(|i| 0x1111_1111 << (i % 4)).collect::<Vec<u32>>());
    let some = "setp.lt.u32 %p1, %r1, 5;\n@%p1 bra L;\nmatch.any.sync.b32 %r3, %r1, -1;\nL:";
    assert!(matches!(cause(some, (1, 32), 1), Cause::Diverged { .. }));
}

#[test]
fn conversions_to_64_bits_cut_off() {
    let body = "cvt.rn.f32.u32 %f1, %r1;\nmul.f32 %f2, %f1, 0f3FC00000;\ncvt.rzi.u64.f32 %rd6, %f2;\n\
        cvt.u32.u64 %r3, %rd6;\nst.global.u32 [%rd5], %r3;";
    assert_eq!(run(body, (1, 4), 4).unwrap().0, [0, 1, 3, 4]);
}

#[test]
fn accesses_are_counted_as_memory_serves_them() {
    let (_, stats) = run("ld.global.u32 %r2, [%rd4];\nst.global.u32 [%rd5], %r2;", (1, 32), 32).unwrap();
    assert_eq!((stats.traffic.sectors, stats.traffic.least_sectors), (8, 8));
    let column = "mov.u32 %r2, dyn;\nand.b32 %r3, %r1, 3;\nshl.b32 %r3, %r3, 7;\nadd.s32 %r4, %r2, %r3;\n\
        st.shared.u32 [%r4], %r1;\nst.global.u32 [%rd5], %r1;";
    let (_, stats) = run(column, (1, 4), 4).unwrap();
    assert_eq!((stats.traffic.passes, stats.traffic.least_passes), (4, 1));
}

#[test]
fn a_message_names_kernel_line_and_thread() {
    let error = run("ld.global.u32 %r2, [%rd4+4];\nst.global.u32 [%rd5], %r2;", (1, 64), 64).unwrap_err().to_string();
    let wanted = "k, PTX line 20 `ld.global.u32 %r2, [%rd4+4]`, block (0, 0, 0), thread 63: 4 bytes at";
    assert!(error.starts_with(wanted) && error.ends_with("256 after the begin of one of 256 bytes"), "{error}");
    let error = Module::parse(".visible .entry k()\n{\n add.q32 %r1, %r2, %r3;\n}\n").unwrap_err().to_string();
    assert_eq!(error, "PTX line 3: unknown form: `add.q32 %r1, %r2, %r3`");
}

#[test]
fn global_memory_is_guarded() {
    assert!(matches!(cause("ld.global.u32 %r2, [%rd5];", (1, 32), 32), Cause::Uninitialised { .. }));
    assert!(matches!(cause("ld.global.u32 %r2, [%rd4+2];", (1, 1), 32), Cause::Misaligned { bytes: 4, .. }));
    assert!(matches!(cause("st.global.u32 [%rd2], %r1;", (2, 1), 32), Cause::GlobalRace { .. }));
    assert!(matches!(cause("st.global.u32 [%rd5], %r1;", (1, 8), 32), Cause::Uninitialised { .. }), "half an output");
}

#[test]
fn shared_memory_needs_barriers() {
    let put = "mov.u32 %r2, dyn;\nshl.b32 %r3, %r1, 2;\nadd.s32 %r4, %r2, %r3;\nst.shared.u32 [%r4], %r1;\n";
    let get = "xor.b32 %r5, %r3, 252;\nadd.s32 %r6, %r2, %r5;\nld.shared.u32 %r7, [%r6];\nst.global.u32 [%rd5], %r7;";
    let (out, stats) = run(&format!("{put}bar.sync 0;\n{get}"), (1, 64), 64).unwrap();
    assert_eq!(out, (0..64).rev().collect::<Vec<u32>>());
    assert_eq!(stats.barriers, 1);
    assert!(matches!(cause(&format!("{put}{get}"), (1, 64), 64), Cause::SharedRace { .. }));
    let far = "mov.u32 %r2, dyn;\nld.shared.u32 %r7, [%r2+512];";
    assert!(matches!(cause(far, (1, 1), 1), Cause::SharedBounds { size: 512, .. }));
    let unwritten = "mov.u32 %r2, dyn;\nld.shared.f32 %f1, [%r2];\nst.global.f32 [%rd5], %f1;";
    assert!(f32::from_bits(run(unwritten, (1, 1), 1).unwrap().0[0]).is_nan());
}

#[test]
fn barriers_must_be_reached_by_all() {
    let some = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bar.sync 0;";
    assert!(matches!(cause(some, (1, 64), 1), Cause::Diverged { active: 0, .. } | Cause::Barrier { .. }));
    let branch = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra L;\nbar.sync 0;\nL:";
    assert!(matches!(cause(branch, (1, 64), 1), Cause::Barrier { .. }));
    let lanes = "setp.lt.u32 %p1, %r1, 5;\n@%p1 bra L;\nbar.sync 0;\nL:";
    assert!(matches!(cause(lanes, (1, 32), 1), Cause::Diverged { .. }));
    let shuffle = "setp.lt.u32 %p1, %r1, 5;\n@%p1 bra L;\nshfl.sync.idx.b32 %r3|%p2, %r1, 0, 31, -1;\nL:";
    assert!(matches!(cause(shuffle, (1, 32), 1), Cause::Diverged { .. }));
    assert_eq!(cause("L:\nbra L;", (1, 32), 1), Cause::TooLong(100_000));
}

#[test]
fn asynchronous_copies_land_at_their_wait() {
    let begin = "mov.u32 %r2, dyn;\nshl.b32 %r3, %r1, 4;\nadd.s32 %r4, %r2, %r3;\nmul.wide.u32 %rd6, %r1, 16;\n\
        add.s64 %rd7, %rd1, %rd6;\ncp.async.cg.shared.global [%r4], [%rd7], 16, 8;\ncp.async.commit_group;\n";
    let read = "ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r4];\nadd.s64 %rd8, %rd2, %rd6;\n\
        st.global.v4.u32 [%rd8], {%r5, %r6, %r7, %r8};";
    let (out, _) = run(&format!("{begin}cp.async.wait_group 0;\n{read}"), (1, 2), 8).unwrap();
    assert_eq!(out, [0, 1, 0, 0, 4, 5, 0, 0], "bytes beyond those given are zeros");
    for missing in ["", "cp.async.wait_group 1;\n"] {
        assert!(matches!(cause(&format!("{begin}{missing}{read}"), (1, 2), 8), Cause::InFlight { .. }));
    }
}

#[test]
fn a_million_lane_instructions_take_well_under_a_second() {
    let body = "mov.u32 %r3, 0;\nL:\nadd.s32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, 100;\n@%p1 bra L;\nst.global.u32 [%rd5], %r3;";
    let start = std::time::Instant::now();
    let (out, stats) = run(body, (1, 1024), 1024).unwrap();
    assert!(out.iter().all(|n| *n == 100));
    assert!(3 * stats.instructions * 32 > 900_000 && start.elapsed().as_secs_f32() < 0.5, "{:?}", start.elapsed());
}
