//! Experts as files have them, one by one or fused, seen as the model has them: all of a block in one tensor.

use ferrotune_checkpoint::{Adapter, Dtype, Error, HostTensor, LoraWeights, Result, TensorInfo, TensorSource};
use ferrotune_model::{expert_name, stack_name};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// What transformers 5 calls gate and up projections that lie in one tensor, `[experts, 2 * inner, hidden]`, and which half of
/// it is which.
const FUSED: &str = "gate_up_proj";
const HALVES: [&str; 2] = ["gate_proj", "up_proj"];
/// What it calls a mixture in memory, and Mixtral's files do.
const MODULES: [&str; 2] = [".mlp.", ".block_sparse_moe."];
/// The matrices of an expert in the one form and the other.
const MATRICES: [(&str, &str); 3] = [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")];

/// A model's files with the matrices of all experts of a block in one tensor, `[experts, out, in]`, by the name that
/// [`stack_name`] gives. All other tensors are as they are.
pub struct Stacked<S> {
    inner: S,
    stacks: HashMap<String, Stack>,
}

/// Where a stack's elements are.
#[derive(Clone)]
struct Stack {
    info: TensorInfo,
    place: Place,
}

#[derive(Clone)]
enum Place {
    /// One tensor an expert.
    Apart,
    /// Within the tensor `name`, of which each expert has `of` parts as large as a matrix; this is number `part`.
    Fused { name: String, part: usize, of: usize },
}

impl<S: TensorSource> Stacked<S> {
    /// Looks for experts among the names of `inner`.
    pub fn new(inner: S) -> Self {
        // The largest number, and how many there are: a name with an absurd one makes no stack.
        let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut stacks = HashMap::new();
        for name in inner.names() {
            if let Some((stack, expert)) = stack_name(&name) {
                let (largest, count) = found.entry(stack).or_default();
                (*largest, *count) = ((*largest).max(expert), *count + 1);
            } else {
                stacks.extend(fused(&inner, &name));
                stacks.extend(router(&inner, &name));
            }
        }
        let whole = found.into_iter().filter(|(_, (largest, count))| largest + 1 == *count);
        let whole = whole.map(|(name, (_, count))| (name, count));
        let apart = whole.filter_map(|(name, count)| Some((name.clone(), apart(&inner, &name, count)?)));
        stacks.extend(apart);
        Self { inner, stacks }
    }

    /// The stack that holds an expert's matrix, for files that have it in no other way.
    fn one(&self, name: &str) -> Option<(&Stack, usize)> {
        let (stack, expert) = stack_name(name)?;
        Some((self.stacks.get(&stack)?, expert))
    }

    /// Reads `range` of an expert's matrix.
    fn read_one(
        &self,
        name: &str,
        stack: &Stack,
        expert: usize,
        range: Range<usize>,
        to: Dtype,
        dst: &mut [u8],
    ) -> Result<()> {
        match &stack.place {
            Place::Apart => {
                let one = expert_name(name, expert).unwrap_or_default();
                self.inner.read_range(&one, range, to, dst)
            }
            Place::Fused { name, part, of } => {
                let start = (expert * of + part) * matrix(&stack.info);
                self.inner.read_range(name, start + range.start..start + range.end, to, dst)
            }
        }
    }
}

/// Elements of an expert's matrix.
fn matrix(info: &TensorInfo) -> usize {
    info.shape[1..].iter().product()
}

/// A stack of `count` tensors, if all of them are there and alike.
fn apart(inner: &dyn TensorSource, name: &str, count: usize) -> Option<Stack> {
    let first = inner.info(&expert_name(name, 0)?)?;
    let alike = |expert| inner.info(&expert_name(name, expert)?).filter(|info| info.shape == first.shape);
    (0..count).try_for_each(|expert| alike(expert).map(drop))?;
    let [out, inputs] = first.shape[..] else { return None };
    let info = TensorInfo { shape: vec![count, out, inputs], dtype: first.dtype };
    Some(Stack { info, place: Place::Apart })
}

/// The stacks that a tensor of several experts holds: `experts.gate_up_proj` or `experts.down_proj` as transformers has them in
/// memory, where Mixtral has the names of all; or `experts.down_proj.weight`, as the model has it, in GGUF.
fn fused(inner: &dyn TensorSource, name: &str) -> Vec<(String, Stack)> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let Some((before, last)) = stem.rsplit_once('.').filter(|(before, _)| before.ends_with(".experts")) else {
        return Vec::new();
    };
    let Some(info) = inner.info(name) else { return Vec::new() };
    let [experts, out, inputs] = info.shape[..] else { return Vec::new() };
    let stack = |part: usize, of: usize| {
        let info = TensorInfo { shape: vec![experts, out / of, inputs], dtype: info.dtype };
        Stack { info, place: Place::Fused { name: name.to_owned(), part, of } }
    };
    let found = match last {
        FUSED if !out.is_multiple_of(2) => Vec::new(),
        FUSED => (0..2).map(|part| (HALVES[part], stack(part, 2))).collect(),
        _ => vec![(last, stack(0, 1))],
    };
    let mut named = Vec::new();
    for (matrix, stack) in found {
        if let (Some((_, other)), Some(before)) = (MATRICES.iter().find(|(one, _)| *one == matrix), mixtral(before)) {
            named.push((format!("{before}.{other}.weight"), stack.clone()));
        }
        named.push((format!("{before}.{matrix}.weight"), stack));
    }
    named
}

/// A name as Mixtral's files have it.
fn mixtral(name: &str) -> Option<String> {
    name.contains(MODULES[0]).then(|| name.replace(MODULES[0], MODULES[1]))
}

/// A router under the name of Mixtral's files, row by row.
fn router(inner: &dyn TensorSource, name: &str) -> Option<(String, Stack)> {
    let as_mixtral = name.ends_with(".mlp.gate.weight").then(|| mixtral(name))??;
    let info = inner.info(name).filter(|info| info.shape.len() == 2)?;
    Some((as_mixtral, Stack { info, place: Place::Fused { name: name.to_owned(), part: 0, of: 1 } }))
}

impl<S: TensorSource> TensorSource for Stacked<S> {
    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.extend(self.stacks.keys().cloned());
        names.sort_unstable();
        names.dedup();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        if let Some(stack) = self.stacks.get(name) {
            return Some(stack.info.clone());
        }
        let one = || {
            let (stack, expert) = self.one(name)?;
            (expert < stack.info.shape[0])
                .then(|| TensorInfo { shape: stack.info.shape[1..].to_vec(), dtype: stack.info.dtype })
        };
        self.inner.info(name).or_else(one)
    }

    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
        let Some(stack) = self.stacks.get(name).filter(|_| self.inner.info(name).is_none()) else {
            return match self.one(name).filter(|_| self.inner.info(name).is_none()) {
                Some((stack, expert)) => self.read_one(name, stack, expert, range, to, dst),
                None => self.inner.read_range(name, range, to, dst),
            };
        };
        let (size, bytes) = (matrix(&stack.info), to.block().1);
        if range.end > stack.info.shape[0] * size || dst.len() != range.len() * bytes {
            return Err(Error::UnknownTensor { path: "experts".into(), name: name.to_owned() });
        }
        let mut dst = dst;
        let mut at = range.start;
        while at < range.end {
            let (expert, start) = (at / size, at % size);
            let end = (start + range.end - at).min(size);
            let (head, tail) = std::mem::take(&mut dst).split_at_mut((end - start) * bytes);
            self.read_one(name, stack, expert, start..end, to, head)?;
            (dst, at) = (tail, at + end - start);
        }
        Ok(())
    }
}

/// An adapter whose experts lie as the model has them: A `[experts, r, in]` and B `[experts, out, r]` of all in one module. Experts
/// without an adapter get zeros.
pub(crate) fn stack_adapter(adapter: &mut Adapter, experts: impl Fn(&str) -> Option<usize>) {
    let mut stacks: BTreeMap<String, Vec<(usize, LoraWeights)>> = BTreeMap::new();
    let modules = std::mem::take(&mut adapter.modules);
    for (module, weights) in modules {
        match stack_name(&module).filter(|(stack, expert)| experts(stack).is_some_and(|count| *expert < count)) {
            Some((stack, expert)) => stacks.entry(stack).or_default().push((expert, weights)),
            None => drop(adapter.modules.insert(module, weights)),
        }
    }
    for (stack, given) in stacks {
        let count = experts(&stack).unwrap_or(0);
        let join = |of: &dyn Fn(&LoraWeights) -> &HostTensor| {
            let shape = of(&given[0].1).shape.clone();
            let size: usize = shape.iter().product();
            let mut data = vec![0.0; count * size];
            for (expert, weights) in given.iter().filter(|(_, weights)| of(weights).shape == shape) {
                data[expert * size..(expert + 1) * size].copy_from_slice(&of(weights).data);
            }
            HostTensor { shape: [&[count], &shape[..]].concat(), data }
        };
        let (a, b) = (join(&|weights| &weights.a), join(&|weights| &weights.b));
        adapter.modules.insert(stack, LoraWeights { a, b, magnitude: None, embedding: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts of matrices `[2, 3]`, apart or fused; each element is its own number.
    struct Files(Vec<(&'static str, Vec<usize>, f32)>);

    impl TensorSource for Files {
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|(name, ..)| (*name).to_owned()).collect()
        }
        fn info(&self, name: &str) -> Option<TensorInfo> {
            let (_, shape, _) = self.0.iter().find(|(n, ..)| *n == name)?;
            Some(TensorInfo { shape: shape.clone(), dtype: Dtype::F32 })
        }
        fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
            let (_, _, first) = self.0.iter().find(|(n, ..)| *n == name).expect("a name of its own");
            let values: Vec<f32> = range.map(|i| first + i as f32).collect();
            ferrotune_checkpoint::encode(to, &values, dst);
            Ok(())
        }
    }

    #[test]
    fn experts_apart_are_one_tensor_whatever_is_read_of_it() {
        let files = Files(vec![
            ("l.mlp.experts.0.up_proj.weight", vec![2, 3], 0.0),
            ("l.mlp.experts.1.up_proj.weight", vec![2, 3], 100.0),
            ("l.mlp.gate.weight", vec![2, 3], 7.0),
        ]);
        let stacked = Stacked::new(files);
        let name = "l.mlp.experts.up_proj.weight";
        assert_eq!(stacked.info(name).expect("a stack").shape, [2, 2, 3]);
        let all = stacked.read_f32(name).expect("read");
        assert_eq!(all, [0., 1., 2., 3., 4., 5., 100., 101., 102., 103., 104., 105.]);
        for start in 0..=12 {
            for end in start..=12 {
                let mut bytes = vec![0; 4 * (end - start)];
                stacked.read_range(name, start..end, Dtype::F32, &mut bytes).expect("read");
                assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), all[start..end]);
            }
        }
        assert!(stacked.read_range(name, 5..13, Dtype::F32, &mut [0; 32]).is_err());
        assert_eq!(stacked.read_f32("l.mlp.gate.weight").expect("as it is")[0], 7.0);
    }

    /// As GGUF has them, and as transformers has Mixtral in memory.
    #[test]
    fn experts_of_whole_stacks_are_found_one_by_one_and_by_mixtrals_names() {
        let files = Files(vec![
            ("model.layers.0.mlp.experts.up_proj.weight", vec![2, 2, 3], 0.0),
            ("model.layers.1.mlp.experts.gate_up_proj", vec![2, 4, 3], 0.0),
            ("model.layers.1.mlp.experts.down_proj", vec![2, 3, 2], 50.0),
            ("model.layers.1.mlp.gate.weight", vec![2, 3], 80.0),
        ]);
        let stacked = Stacked::new(files);
        let read = |name: &str| stacked.read_f32(&format!("model.layers.{name}.weight")).expect("read");
        assert_eq!(read("0.mlp.experts.1.up_proj"), [6., 7., 8., 9., 10., 11.]);
        assert_eq!(read("0.mlp.experts.up_proj").len(), 12);
        assert!(stacked.info("model.layers.0.mlp.experts.2.up_proj.weight").is_none());
        let module = "1.block_sparse_moe";
        assert_eq!(read(&format!("{module}.experts.w3")), read("1.mlp.experts.up_proj"));
        assert_eq!(read(&format!("{module}.experts.1.w1")), [12., 13., 14., 15., 16., 17.]);
        assert_eq!(read(&format!("{module}.experts.w2"))[0], 50.0);
        assert_eq!(read(&format!("{module}.gate")), [80., 81., 82., 83., 84., 85.]);
        let names = stacked.names();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "each once: {names:?}");
    }

    #[test]
    fn fused_experts_are_cut_and_incomplete_ones_are_none() {
        let files = Files(vec![
            ("l.mlp.experts.gate_up_proj", vec![2, 4, 3], 0.0),
            ("l.mlp.experts.down_proj", vec![2, 3, 2], 50.0),
            ("m.mlp.experts.0.up_proj.weight", vec![2, 3], 0.0),
            ("m.mlp.experts.2.up_proj.weight", vec![2, 3], 0.0),
            ("n.mlp.experts.0.up_proj.weight", vec![2, 3], 0.0),
            ("n.mlp.experts.1.up_proj.weight", vec![3, 3], 0.0),
            ("o.mlp.experts.99999999999999.up_proj.weight", vec![3, 3], 0.0),
        ]);
        let stacked = Stacked::new(files);
        let read = |name: &str| stacked.read_f32(&format!("l.mlp.experts.{name}.weight")).expect("read");
        assert_eq!(read("gate_proj"), [0., 1., 2., 3., 4., 5., 12., 13., 14., 15., 16., 17.]);
        assert_eq!(read("up_proj"), [6., 7., 8., 9., 10., 11., 18., 19., 20., 21., 22., 23.]);
        assert_eq!(read("down_proj").len(), 12);
        // One by one, too, as adapters name them.
        assert_eq!(read("1.up_proj"), [18., 19., 20., 21., 22., 23.]);
        assert!(stacked.info("l.mlp.experts.2.up_proj.weight").is_none());
        for part in ["m", "n", "o"] {
            assert!(stacked.info(&format!("{part}.mlp.experts.up_proj.weight")).is_none(), "{part}");
        }
    }
}
