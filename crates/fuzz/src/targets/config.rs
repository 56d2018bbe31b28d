//! Recipes, as YAML and as JSON, and command lines.

use ferrotune_config::plan::Plan;
use ferrotune_config::{Recipe, Verb};

use super::{Target, fixture};

pub(super) const TARGETS: &[Target] = &[Target {
    name: "recipe",
    run: recipe,
    most_bytes: 64 << 20,
    words: &[
        ": ",
        "\n",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "*x",
        "&x ",
        "<<: ",
        "|",
        ">",
        "'",
        "\"",
        "\\",
        "\t",
        "#",
        "---\n",
        "? ",
        "!!",
        "null",
        "1e999",
        "-1",
        "0.5",
        "true",
        "\u{feff}",
        "\r",
        "é",
        "😀",
        "\0",
        "${x}",
        "~/",
        "dataset",
        "stage",
        "pt",
        "sft",
        "streaming: true\n",
        "max_steps: 3\n",
        "val_size: 0.1\n",
        "packing: true\n",
        "deepspeed: x.json\n",
        "lora_target: all\n",
        "interleave_probs: 0.5,0.5\n",
        "warmup_ratio: 0.1\n",
    ],
    seeds: || {
        vec![
            fixture("recipes/qwen3_lora_sft.yaml"),
            b"{\"model_name_or_path\": \"m\", \"seed\": 1e400, \"dataset\": [\"d\"], \"s\": \"\\ud83d\\ude00\"}"
                .to_vec(),
            b"a: &x {b: [1, 2, *x], <<: *x}\n? [k]\n: 'v'\n--- |\n  block\n".to_vec(),
            b"dataset=a,b --stage pt\nval_size=0.1\n".to_vec(),
        ]
    },
}];

fn recipe(input: &[u8]) -> String {
    let name = if input.first() == Some(&b'{') { "r.json" } else { "r.yaml" };
    let mut said = match Recipe::parse(name, input) {
        Err(errors) => errors.render(false),
        Ok(recipe) => [Verb::Train, Verb::Data, Verb::Chat, Verb::Export].map(|verb| resolved(&recipe, verb)).concat(),
    };
    let words: Vec<String> = String::from_utf8_lossy(input).split('\n').map(str::to_owned).collect();
    said += &match Recipe::from_args(&words) {
        Err(errors) => errors.render(false),
        Ok(recipe) => resolved(&recipe, Verb::Train),
    };
    said
}

fn resolved(recipe: &Recipe, verb: Verb) -> String {
    match Plan::resolve(recipe, verb) {
        Ok((_, notes)) => format!("{} notes", notes.len()),
        Err(errors) => errors.render(false),
    }
}
