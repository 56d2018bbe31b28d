//! Recipes on the command line, overrides after a file, and JSON.

use ferrotune_config::plan::{Packing, Plan, Recompute, ScheduleKind, Tuning, Warmup};
use ferrotune_config::{Diagnostics, Recipe, Verb};

const BASE: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\ndo_train: true\n";

fn args(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn over(file: &str, words: &[&str]) -> Result<Plan, Diagnostics> {
    let mut recipe = Recipe::parse("r.yaml", file.as_bytes())?;
    recipe.apply(&args(words))?;
    Plan::resolve(&recipe, Verb::Train).map(|(plan, _)| plan)
}

fn resolved(words: &[&str]) -> Plan {
    over(BASE, words).unwrap_or_else(|e| panic!("{words:?}\n{e}"))
}

fn refused(words: &[&str]) -> String {
    over(BASE, words).expect_err("must be refused").to_string()
}

#[test]
fn three_spellings_say_the_same_and_the_last_wins() {
    for words in [
        &["learning_rate=2e-4"][..],
        &["--learning_rate", "2e-4"],
        &["--learning_rate=2e-4"],
        &["--learning-rate", "2e-4"],
        &["learning_rate=1", "--learning_rate", "3", "learning_rate=2e-4"],
    ] {
        assert_eq!(resolved(words).train.schedule.learning_rate, 2e-4, "{words:?}");
    }
}

#[test]
fn flags_need_no_value_and_may_be_negated() {
    let plan = resolved(&["--bf16", "--packing", "false", "--plot_loss", "max_steps=3", "--no_do_sample", "seed=1"]);
    assert_eq!(plan.data.packing, Packing::Off);
    assert!(plan.output.plot_loss && !plan.generation.do_sample);
    assert_eq!((plan.train.length, plan.train.seed), (ferrotune_config::plan::RunLength::Steps(3), 1));
    assert_eq!(resolved(&["--gradient_checkpointing", "auto"]).model.recompute, Recompute::Auto);
    assert_eq!(resolved(&["--gradient_checkpointing"]).model.recompute, Recompute::On);
    assert_eq!(resolved(&["--max_steps", "-1", "--bf16"]).train.length, ferrotune_config::plan::RunLength::Epochs(3.0));
}

#[test]
fn values_keep_their_spaces_colons_commas_and_equals_signs() {
    let system = |words: &[&str]| resolved(words).data.default_system;
    let text = "You are X: be kind, a=b # not a comment";
    assert_eq!(system(&[&format!("default_system={text}")]).as_deref(), Some(text));
    assert_eq!(system(&["--default_system", text]).as_deref(), Some(text));
    assert_eq!(system(&[&format!("--default_system={text}")]).as_deref(), Some(text));
    assert_eq!(system(&["default_system=[x] {y}"]).as_deref(), Some("[x] {y}"));
    assert_eq!(system(&["default_system=\"a\\nb\""]).as_deref(), Some("a\nb"));
    assert_eq!(system(&["default_system=two\nlines"]).as_deref(), Some("two\nlines"));
    assert_eq!(system(&["default_system='null'"]).as_deref(), Some("null"));
}

#[test]
fn null_unsets_what_the_file_set() {
    let file = format!("{BASE}template: qwen3\nmax_samples: 5\n");
    for word in ["max_samples=null", "max_samples=", "max_samples=~"] {
        assert_eq!(over(&file, &[word]).unwrap().data.max_samples, None, "{word}");
    }
}

#[test]
fn lists_mappings_and_dotted_keys_are_yaml() {
    let plan = resolved(&["lora_target=[q_proj, v_proj]", "dataset=a,b"]);
    assert_eq!(plan.data.datasets, ["a", "b"]);
    let kind = |words: &[&str]| resolved(words).train.schedule.kind;
    let expected = ScheduleKind::CosineWithMinLr { num_cycles: 0.5, min_lr_rate: 0.1 };
    assert_eq!(kind(&["lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs={min_lr_rate: 0.1}"]), expected);
    assert_eq!(kind(&["lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs.min_lr_rate=0.1"]), expected);
    assert_eq!(
        kind(&["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", "{\"min_lr_rate\": \"0.1\"}"]),
        expected
    );
    let file = format!(
        "{BASE}lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {{min_lr_rate: 0.3, num_cycles: 1}}\n"
    );
    let merged = over(&file, &["lr_scheduler_kwargs.min_lr_rate=0.1"]).unwrap().train.schedule.kind;
    assert_eq!(merged, ScheduleKind::CosineWithMinLr { num_cycles: 1.0, min_lr_rate: 0.1 });
}

#[test]
fn an_override_wins_whatever_spelling_the_file_has() {
    let file = format!("{BASE}evaluation_strategy: epoch\nval_size: 2\n");
    assert_eq!(over(&file, &["eval_strategy=no"]).unwrap().eval.every, ferrotune_config::plan::Interval::Never);
    let words = ["eval_strategy=no", "evaluation_strategy=epoch", "eval_strategy=steps", "eval_steps=9"];
    assert_eq!(over(&file, &words).unwrap().eval.every, ferrotune_config::plan::Interval::Steps(9));
    assert_eq!(over(&file, &words[..2]).unwrap().eval.every, ferrotune_config::plan::Interval::Epoch);
}

#[test]
fn bad_arguments_are_shown_where_they_stand() {
    assert_eq!(
        refused(&["seed=1", "--learning_rate", "abc"]),
        "error: `learning_rate`: expected a number, found 'abc'\n \
         --> command line:1:24\n  |\n1 | seed=1 --learning_rate abc\n  |                        ^^^\n  \
         = help: write, for example, `learning_rate: 5e-5`"
    );
    assert!(refused(&["lora_rnak=4"]).contains("unknown key `lora_rnak`"));
    assert!(refused(&["--lora_rnak", "4"]).contains("= help: did you mean `lora_rank`?"));
    assert!(refused(&["stray"]).contains("unexpected argument 'stray'"));
    assert!(refused(&["NNODES=2", "r.YAML"]).contains("variables, as NNODES=2, stand in front of the command"));
    assert!(refused(&["--nnodes", "2"]).contains("write NNODES=... in front of the command"));
    assert!(refused(&["-x", "1"]).contains("unexpected argument '-x'"));
    assert!(refused(&["--"]).contains("unexpected argument '--'"));
    assert!(refused(&["--seed"]).contains("`--seed` needs a value"));
    assert!(refused(&["--seed", "--bf16"]).contains("`--seed` needs a value"));
    assert!(refused(&["=3"]).contains("no key before the `=` in ''"));
    assert!(refused(&["a..b=3"]).contains("no key before the `=` in 'a..b'"));
    assert!(refused(&["lora_target=[q_proj"]).contains("'[q_proj' is not valid YAML"));
    assert!(refused(&["a.b.c.d.e.f.g.h.i.j=3"]).contains("reaches too deep"));
}

#[test]
fn a_recipe_may_live_on_the_command_line_alone() {
    let words =
        ["--model_name_or_path", "m", "--dataset", "d e", "--output_dir", "o", "--do_train", "--lora_rank", "4"];
    let recipe = Recipe::from_args(&args(&words)).unwrap();
    assert_eq!(recipe.name(), "command line");
    let (plan, _) = Plan::resolve(&recipe, Verb::Train).unwrap();
    assert_eq!(plan.data.datasets, ["d e"]);
    let Tuning::Lora(lora) = plan.tuning else { panic!() };
    assert_eq!((lora.rank, lora.alpha), (4, 8.0));
    let empty = Plan::resolve(&Recipe::from_args(&[]).unwrap(), Verb::Train).unwrap_err();
    assert!(empty.to_string().contains("`model_name_or_path` is missing\n --> command line"), "{empty}");
}

#[test]
fn json_says_the_same_as_yaml() {
    let json = r#"{
	"model_name_or_path": "m", "dataset": "d",
	"output_dir": "o", "do_train": true,
	"learning_rate": 1e-4, "warmup_ratio": 0.1, "max_samples": null,
	"default_system": "\u4f60\u597d \ud83d\ude00\n\/"
}"#;
    let recipe = Recipe::parse("r.json", json.as_bytes()).unwrap();
    let (plan, _) = Plan::resolve(&recipe, Verb::Train).unwrap();
    assert_eq!(plan.train.schedule.learning_rate, 1e-4);
    assert_eq!(plan.train.schedule.warmup, Warmup::Ratio(0.1));
    assert_eq!(plan.data.default_system.as_deref(), Some("你好 😀\n/"));
    assert_eq!(plan.data.max_samples, None);
}

#[test]
fn paths_may_begin_at_home() {
    let file = "model_name_or_path: ~/m\ndataset: d\noutput_dir: ~/o\nadapter_name_or_path: ~/a,b\n";
    let recipe = Recipe::parse("r.yaml", file.as_bytes()).unwrap().with_home(Some("/home/u".into()));
    let (plan, _) = Plan::resolve(&recipe, Verb::Train).unwrap();
    assert_eq!((plan.model.source.as_str(), plan.output.dir.to_str()), ("/home/u/m", Some("/home/u/o")));
    assert_eq!(plan.model.adapters, ["/home/u/a", "b"]);
    let homeless = Recipe::parse("r.yaml", file.as_bytes()).unwrap();
    let errors = Plan::resolve(&homeless, Verb::Train).unwrap_err().0;
    assert_eq!(errors.len(), 3);
    assert_eq!(errors[0].message, "`model_name_or_path`: `~` stands for a home folder, and none is known");
}

#[test]
fn unknown_keys_can_be_left_out() {
    let file = format!("{BASE}lora_rnak: 4\n");
    let recipe = Recipe::parse("r.yaml", file.as_bytes()).unwrap().with_unknown_keys(true);
    let (plan, notes) = Plan::resolve(&recipe, Verb::Train).unwrap();
    assert_eq!(plan, over(BASE, &[]).unwrap());
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0].message, "unknown key `lora_rnak` is left out");
}

#[test]
fn a_recipe_with_overrides_is_written_as_one_and_reads_as_the_same() {
    let text = b"stage: sft\nmodel_name_or_path: m\nlora_target: [q_proj, v_proj]\nresume_from_checkpoint: null\nhf_hub_token: hf_secretsecret\nlearning_rate: 1e-4\n";
    let mut recipe = Recipe::parse("r.yaml", text).unwrap();
    recipe.apply(&["lora_rank=16".to_owned(), "output_dir=o ut".to_owned()]).unwrap();
    let json = recipe.to_json();
    assert!(!json.to_string().contains("secret"), "{json}");
    let again = Recipe::parse("recipe.json", json.to_string().as_bytes()).unwrap();
    let plan = |recipe: &Recipe| Plan::resolve(recipe, Verb::Chat).unwrap().0;
    assert_eq!(plan(&again).tuning, plan(&recipe).tuning);
    assert_eq!(plan(&again).train, plan(&recipe).train);
    assert_eq!(plan(&again).output.dir, std::path::Path::new("o ut"));
}
