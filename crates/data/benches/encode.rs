//! Rows and tokens a second of encoding 20,000 made-up Alpaca rows with the Qwen3 tokenizer, on
//! all cores, and the time to load the tokenizer. `cargo bench -p ferrotune-data --bench encode`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::Path;
use std::time::Instant;

use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::encode::{EncodeOptions, Encoder};
use ferrotune_data::template::{Template, TemplateOptions};
use ferrotune_data::tokenizer::Tokenizer;
use rayon::prelude::*;

const ROWS: u64 = 20_000;
const ENGLISH: &str = "the of and to in is that for it as was with be by on not he this are or his from at which but \
    have an had they you were their one all we can her has there been if more when will would who so no explain write \
    describe summarize following sentence paragraph model language data learning network example important different \
    people government energy climate water system process between because however therefore development technology \
    information history science education environment relationship understanding unfortunately approximately \
    characteristics photosynthesis responsibility infrastructure mitochondria deforestation";
const CODE: &str = "def f(x): return x + 1\n    for i in range(10):\n        print(i)\n    if (a == b) && (c != d) { \
    let mut v = Vec::new(); v.push(42); }\nSELECT * FROM users WHERE id = 7 ORDER BY name;\n\tself.items[key] = value\n";
const CHINESE: &str = "机器学习是人工智能的一个分支，它使计算机能够从数据中学习。请解释以下句子的含义，并给出三个例子。\
    今天天气很好，我们去公园散步吧！环境保护需要每个人的努力。";

/// A small generator of numbers (splitmix64): the same rows on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A word that stands in no list: names and rare words keep the table of seen words from answering all.
fn rare(random: &mut Random) -> String {
    const SYLLABLES: [&str; 16] =
        ["ka", "ro", "min", "ter", "sel", "vo", "qui", "bra", "nor", "den", "lu", "phi", "stan", "go", "wer", "ix"];
    (0..2 + random.below(3)).map(|_| SYLLABLES[random.below(SYLLABLES.len())]).collect()
}

fn prose(random: &mut Random, words: usize) -> String {
    let vocabulary: Vec<_> = ENGLISH.split_whitespace().collect();
    let mut out = String::new();
    for i in 0..words {
        // Common words come first and are drawn more often, as in real text.
        let reach = 1 + random.below(vocabulary.len());
        let word = vocabulary[random.below(reach)];
        match random.below(24) {
            0 => out.push_str(&format!(" {}", random.below(3000))),
            1 => out.push_str(&format!(". {}{}", word[..1].to_uppercase(), &word[1..])),
            2 => out.push_str(&format!(", {word}")),
            3 => out.push_str(&format!(" {word}'s")),
            5 | 6 => out.extend([" ", rare(random).as_str()]),
            4 if i % 3 == 0 => out.push_str(&format!(".\n{}. {word}", i % 9)),
            _ => out.extend([" ", word]),
        }
    }
    out.trim_start().to_owned()
}

fn slice(random: &mut Random, text: &str, len: usize) -> String {
    let chars: Vec<_> = text.chars().collect();
    let start = random.below(chars.len());
    chars.iter().cycle().skip(start).take(len).collect()
}

fn row(n: u64) -> Conversation {
    let mut random = Random(n);
    let (words, answer_words) = (8 + random.below(12), 10 + random.below(110));
    let question = prose(&mut random, words);
    let answer = match random.below(10) {
        0 => format!("```python\n{}\n```", slice(&mut random, CODE, answer_words * 4)),
        1 => slice(&mut random, CHINESE, answer_words),
        _ => prose(&mut random, answer_words),
    };
    let messages = vec![Message::new(Role::User, question), Message::new(Role::Assistant, answer)];
    Conversation { messages, ..Conversation::default() }
}

fn main() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tokenizers/qwen3");
    let file = std::fs::File::open(dir.join("tokenizer.json.zst")).expect("the fixture is in the repository");
    let json = zstd::decode_all(file).expect("the fixture is whole");
    let config = std::fs::read(dir.join("tokenizer_config.json")).expect("the fixture is in the repository");
    let config = serde_json::from_slice(&config).expect("the fixture is JSON");

    let start = Instant::now();
    let mut tokenizer = Tokenizer::from_parts(&json, &config, None).expect("the fixture is a tokenizer");
    println!("load      {:>9.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let template = Template::resolve(&TemplateOptions::named("qwen3"), &mut tokenizer).expect("it fits").template;
    let options = EncodeOptions { cutoff_len: 2048, train_on_prompt: false, mask_history: false };
    let encoder = Encoder::new(&tokenizer, &template, &options);
    let rows: Vec<_> = (0..ROWS).map(row).collect();

    for _ in 0..3 {
        let start = Instant::now();
        let tokens: usize =
            rows.par_iter().map(|row| encoder.encode(row).expect("rows are sound").input_ids.len()).sum();
        report("encode", tokens, start);
    }
    let sample = &rows[..rows.len() / 20];
    let start = Instant::now();
    let reference = |row: &Conversation| -> usize {
        row.messages.iter().map(|m| tokenizer.encode_reference(&m.content).expect("it is text").len()).sum()
    };
    let tokens: usize = sample.par_iter().map(reference).sum();
    report("reference", tokens, start);
}

fn report(what: &str, tokens: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let rows = if what == "reference" { ROWS / 20 } else { ROWS } as f64;
    println!(
        "{what:<9} {:>9.0} rows/s {:>10.0} tokens/s ({:.1} tokens a row, {} threads)",
        rows / seconds,
        tokens as f64 / seconds,
        tokens as f64 / rows,
        rayon::current_num_threads()
    );
}
