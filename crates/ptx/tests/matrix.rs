//! `ldmatrix` and `mma` against a plain product.

use ferrotune_ptx::{Arg, Call, Memory, Module, Options};

/// C = A B for one tile, A `[16, 16]` and B `[16, 8]` row-major bf16, C `[16, 8]` f32: loads of both operands through
/// shared memory, B transposed on the way.
const TILE: &str = "
.version 8.1
.target sm_80
.address_size 64
.visible .entry tile(.param .u64 a, .param .u64 b, .param .u64 c)
{
.reg .b32 %r<40>; .reg .f32 %f<9>; .reg .b64 %rd<12>; .reg .pred %p<3>;
.shared .align 16 .b8 left[512];
.shared .align 16 .b8 right[256];
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c];
mov.u32 %r1, %tid.x; mul.wide.u32 %rd4, %r1, 16;
add.s64 %rd5, %rd1, %rd4; ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd5];
shl.b32 %r6, %r1, 4; mov.u32 %r7, left; add.s32 %r8, %r7, %r6;
st.shared.v4.u32 [%r8], {%r2, %r3, %r4, %r5};
mov.u32 %r9, right; setp.lt.u32 %p1, %r1, 16; add.s64 %rd6, %rd2, %rd4; add.s32 %r10, %r9, %r6;
@%p1 ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd6];
@%p1 st.shared.v4.u32 [%r10], {%r2, %r3, %r4, %r5};
bar.warp.sync -1;
and.b32 %r11, %r1, 15; shl.b32 %r12, %r11, 5; shr.u32 %r13, %r1, 4; shl.b32 %r14, %r13, 4;
add.s32 %r15, %r7, %r12; add.s32 %r16, %r15, %r14;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r16];
shl.b32 %r17, %r11, 4; add.s32 %r18, %r9, %r17;
ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r24, %r25}, [%r18];
mov.f32 %f1, 0f00000000;
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r30,%r31,%r32,%r33}, {%r20,%r21,%r22,%r23}, {%r24,%r25}, {%f1,%f1,%f1,%f1};
shr.u32 %r26, %r1, 2; and.b32 %r27, %r1, 3; shl.b32 %r28, %r26, 3; shl.b32 %r29, %r27, 1; add.s32 %r34, %r28, %r29;
mul.wide.u32 %rd7, %r34, 4; add.s64 %rd8, %rd3, %rd7;
st.global.v2.u32 [%rd8], {%r30, %r31};
st.global.v2.u32 [%rd8+256], {%r32, %r33};
ret;
}";

#[test]
fn a_tile_is_a_product() {
    let element = |i: usize, m: usize| (((i * m) % 17) as f32 - 8.0) / 4.0;
    let a: Vec<f32> = (0..256).map(|i| element(i, 7)).collect();
    let b: Vec<f32> = (0..128).map(|i| element(i, 5)).collect();
    let bytes = |x: &[f32]| x.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let mut memory = Memory::new();
    let at = [memory.alloc(512), memory.alloc(256), memory.alloc(512)];
    memory.write(at[0], &bytes(&a)).unwrap();
    memory.write(at[1], &bytes(&b)).unwrap();
    let args = at.map(Arg::U64);
    let call = Call { kernel: "tile", grid: 1.into(), block: 32.into(), shared_bytes: 0, args: &args };
    Module::parse(TILE).unwrap().launch(&call, &mut memory, &Options::default()).unwrap();
    let mut out = [0; 512];
    memory.read(at[2], &mut out).unwrap();
    for (i, c) in out.as_chunks().0.iter().enumerate() {
        let want: f32 = (0..16).map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8]).sum();
        assert_eq!(f32::from_le_bytes(*c), want, "element {i}");
    }
}
