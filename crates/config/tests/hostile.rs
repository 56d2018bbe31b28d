//! Whatever the bytes are, reading them ends with a plan or with errors, never in a panic.

use ferrotune_config::plan::Plan;
use ferrotune_config::{Recipe, Verb};

/// A small generator (xorshift*), so that a failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n as u64).expect("below n")
    }
}

fn read(name: &str, bytes: &[u8]) {
    let shown = match Recipe::parse(name, bytes) {
        Err(errors) => errors.render(true),
        Ok(recipe) => [Verb::Train, Verb::Data, Verb::Chat, Verb::Export]
            .into_iter()
            .map(|verb| match Plan::resolve(&recipe, verb) {
                Ok((plan, notes)) => format!("{plan:?}{notes:?}"),
                Err(errors) => errors.render(false),
            })
            .collect(),
    };
    assert!(!shown.is_empty());
}

const SEEDS: &[&str] = &[
    include_str!("../../../fixtures/recipes/qwen3_lora_sft.yaml"),
    "a: &x {b: [1, 2, *x], <<: *x}\n? [k]\n: 'v'\n--- |\n  block\n>-\n\t%TAG ! x\n!!str !<y> @ ` \"\\ud83d\\x00\"\n",
    "{\"model_name_or_path\": \"m\", \"seed\": 1e400, \"dataset\": [\"d\"], \"s\": \"\\ud83d\\ude00\\ud83d\"}",
    "lr_scheduler_kwargs: '{min_lr: 1}'\nval_size: -0.0\nmax_steps: 9223372036854775807\nsave_steps: 1e-300\nseed: -1\n",
    "lora_rank: 9223372036854775807\nexport_size: 9223372036854775807\nlogging_steps: 1e308\nwarmup_steps: 1e308\n",
];
const PIECES: &[&str] = &[
    ": ", "\n", "- ", "[", "]", "{", "}", "*x", "&x ", "<<: ", "|", ">", "'", "\"", "\\", "\t", "#", "---\n", "...",
    "? ", "!!", "null", "1e999", "\u{feff}", "\r", "\u{85}", "\u{2028}", "é", "😀", "\0", "${x}", "~/", "%", "=",
];

#[test]
fn mangled_recipes_never_panic() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for round in 0..4000 {
        let mut bytes = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
        for _ in 0..=random.below(12) {
            let at = random.below(bytes.len() + 1);
            match random.below(4) {
                0 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
                1 => bytes.truncate(at.max(1)),
                2 => {
                    let piece = PIECES[random.below(PIECES.len())];
                    bytes.splice(at..at, piece.repeat(1 + random.below(3)).bytes());
                }
                _ => {
                    let to = at + random.below(bytes.len() - at + 1);
                    let copy = bytes[at..to].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
            bytes.truncate(20_000);
        }
        read(if round % 4 == 0 { "r.json" } else { "r.yaml" }, &bytes);
    }
}

#[test]
fn random_bytes_and_arguments_never_panic() {
    let mut random = Random(7);
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        read("r.yaml", &bytes);
        let words: Vec<String> = (0..random.below(6))
            .map(|_| {
                (0..=random.below(4))
                    .map(|_| {
                        let names = ["--", "seed", "no_do_sample", "lr_scheduler_kwargs", "dataset", ".", "-"];
                        if random.below(2) == 0 {
                            names[random.below(names.len())]
                        } else {
                            PIECES[random.below(PIECES.len())]
                        }
                    })
                    .collect()
            })
            .collect();
        if let Ok(recipe) = Recipe::from_args(&words) {
            let _ = Plan::resolve(&recipe, Verb::Train).map_err(|e| e.render(true));
        }
    }
}

/// Anything quadratic would make this test hang.
#[test]
fn large_input_is_refused_in_linear_time() {
    let many: String = (0..200_000).map(|i| format!("key_{i}: {i}\n")).collect();
    read("r.yaml", many.as_bytes());
    read("r.yaml", "a: 1\n".repeat(100_000).as_bytes());
    read("r.yaml", format!("a: {}", "[".repeat(1_000_000)).as_bytes());
    read("r.yaml", "a: ".repeat(1_000_000).as_bytes());
    read("r.yaml", "\"".repeat(1_000_000).as_bytes());
    read("r.yaml", format!("default_system: '{}'\nbad", "x".repeat(3_000_000)).as_bytes());
    read("r.json", "[".repeat(1_000_000).as_bytes());
    read("r.json", format!("{{\"a\": \"{}\"}}", "\\ud83d\\ude00".repeat(100_000)).as_bytes());
    read("r.yaml", &vec![b'x'; 5 << 20]);
}
