//! Mixtures of experts as users meet them: what trains, what is saved and merged, what is refused.

use crate::common::{Place, curve, history, model, tensors, trainable};
use crate::many::{elastic, end, gap, losses, reach, run, start};

/// The recipe's model.
fn mixture() -> String {
    format!("model_name_or_path={}", model("tiny-qwen3moe").display())
}

/// Loss on the recipe's rows.
fn evaluate(place: &Place, arguments: &[&str]) -> f64 {
    let common = ["train", "train.yaml", "do_train=false", "do_eval=true", "eval_dataset=d", "output_dir=eval"];
    place.run(&[&common, arguments].concat()).ok();
    place.json("eval/eval_results.json")["eval_loss"].as_f64().unwrap()
}

/// Adapters on all experts, saved one by one, merged, gone on with; and attention alone.
#[test]
fn a_mixture_of_experts_is_an_ordinary_model() {
    let model = mixture();
    let place = trainable("learning_rate: 0.02\nmax_steps: 6\nlora_dropout: 0.1\n");
    let run = place.run(&["train", "train.yaml", &model]).ok();
    let told = "lora_target: all takes the 8 experts of each of 2 blocks (18,432 parameters), attention (5,120); ";
    assert!(run.err.contains(told), "{}", run.err);
    assert!(run.out.contains("adapters on experts are beyond vLLM 0.11.0"), "{}", run.out);
    let adapter = tensors(&place.path("output/adapter_model.safetensors"));
    let name = |e: usize, part| format!("base_model.model.model.layers.1.mlp.experts.{e}.down_proj.lora_{part}.weight");
    assert_eq!(adapter.len(), 2 * 2 * (4 + 8 * 3));
    assert_eq!((adapter[&name(7, "A")].len(), adapter[&name(7, "B")].len()), (4 * 32, 64 * 4));

    // The merged model is worth what model and adapter are.
    let tuned = evaluate(&place, &[&model, "adapter_name_or_path=output"]);
    let base = evaluate(&place, &[&model]);
    place.run(&["export", "train.yaml", &model, "adapter_name_or_path=output", "export_dir=merged"]).ok();
    let merged = evaluate(&place, &["model_name_or_path=merged"]);
    assert!(tuned < base - 0.1 && (merged - tuned).abs() < 1e-5, "{base} {tuned} {merged}");

    // Going on with it begins where it ended, and a new adapter on top of it, too.
    for more in ["create_new_adapter=false", "create_new_adapter=true"] {
        let (adapter, more) = ("adapter_name_or_path=output", [more, "output_dir=next", "overwrite_output_dir=true"]);
        let args = [&["train", "train.yaml", &model, adapter, "max_steps=1", "learning_rate=1e-9"], &more[..]].concat();
        place.run(&args).ok();
        let first = curve(&place.json("next/trainer_state.json"), "loss")[0];
        assert!((first - tuned).abs() < 0.5, "{first} {tuned}");
    }

    let run = place.run(&["train", "train.yaml", &model, "lora_target=attention", "output_dir=attention"]).ok();
    assert!(!run.err.contains("experts"), "{}", run.err);
    assert!(tensors(&place.path("attention/adapter_model.safetensors")).keys().all(|name| name.contains("self_attn")));

    let refused = place.run(&["train", "train.yaml", &model, "use_dora=true", "output_dir=x"]);
    assert!(refused.error().contains("use_dora is not possible on experts"), "{}", refused.error());
}

/// Part of the experts, their router as a whole, and the kinds of LoRA that scale or step differently: saved, read again, merged.
#[test]
fn parts_of_a_mixture_train_and_merge() {
    let model = mixture();
    for (number, options) in [
        ["lora_target=q_proj,experts.down_proj", "additional_target=mlp.gate", "use_rslora=false"],
        ["lora_target=gate_proj", "use_rslora=true", "loraplus_lr_ratio=4"],
        ["lora_target=all", "packing=true", "loraplus_lr_ratio=4"],
    ]
    .iter()
    .enumerate()
    {
        let place = trainable("learning_rate: 0.02\nmax_steps: 6\n");
        place.run(&[&["train", "train.yaml", &model], &options[..]].concat()).ok();
        let base = evaluate(&place, &[&model]);
        let tuned = evaluate(&place, &[&model, "adapter_name_or_path=output"]);
        place.run(&["export", "train.yaml", &model, "adapter_name_or_path=output", "export_dir=merged"]).ok();
        let merged = evaluate(&place, &["model_name_or_path=merged"]);
        assert!(tuned < base - 0.05 && (merged - tuned).abs() < 1e-5, "{options:?}: {base} {tuned} {merged}");
        if number == 0 {
            let config = place.json("output/adapter_config.json");
            assert_eq!(config["target_modules"], serde_json::json!(["down_proj", "q_proj"]));
            let router = "base_model.model.model.layers.1.mlp.gate.weight";
            assert!(tensors(&place.path("output/adapter_model.safetensors")).contains_key(router));
            // Its router goes on training, too.
            let more = ["adapter_name_or_path=output", "output_dir=next", "max_steps=1"];
            place.run(&[&["train", "train.yaml", &model], &more[..]].concat()).ok();
            assert!(tensors(&place.path("next/adapter_model.safetensors")).contains_key(router));
        }
    }
}

#[test]
fn the_loss_on_the_balance_of_experts_is_part_of_the_loss() {
    let place = trainable("max_steps: 2\neval_dataset: d\neval_strategy: steps\neval_on_start: true\n");
    let (model, weight) = (mixture(), "moe_aux_loss_coef=0.5");
    let run = |arguments: &[&str], output: &str| {
        let output_dir = format!("output_dir={output}");
        let run = place.run(&[&["train", "train.yaml", &output_dir], arguments].concat()).ok();
        (place.json(&format!("{output}/trainer_state.json")), run.err)
    };
    let (plain, _) = run(&[&model], "plain");
    assert!(history(&plain, "aux_loss").is_empty());
    let (state, told) = run(&[&model, weight], "balanced");
    assert!(told.contains("moe_aux_loss_coef: the loss has 0.5 times that on the balance of experts in it"), "{told}");
    let first = |state, key| curve(state, key)[0];
    let balance = first(&state, "aux_loss");
    let added = first(&state, "loss") - first(&plain, "loss");
    // Each token has two experts, which is what an even spread makes of it.
    assert!(balance > 1.9 && (added - 0.5 * balance).abs() < 1e-5, "{added} {balance}");
    assert!(first(&state, "eval_loss") - first(&plain, "eval_loss") > 0.9);

    // The model's own wish, and a model that has no experts.
    place.copy(&crate::common::model("tiny-qwen3moe"), "wishes");
    let mut config = place.json("wishes/config.json");
    (config["output_router_logits"], config["router_aux_loss_coef"]) = (true.into(), 0.5.into());
    place.write("wishes/config.json", config.to_string());
    let (wished, told) = run(&["model_name_or_path=wishes"], "wished");
    assert_eq!(curve(&wished, "loss"), curve(&state, "loss"));
    assert!(told.contains("output_router_logits in the model's config.json: the loss has 0.5 times"), "{told}");
    let (_, told) = run(&[weight], "dense");
    assert!(told.contains("moe_aux_loss_coef has no effect: the model has no experts"), "{told}");
}

#[test]
fn what_experts_cannot_be_asked() {
    let (place, model) = (trainable(""), mixture());
    let refused = |arguments: &[&str], error: &str| {
        let run = place.run(&[&["train", "train.yaml", &model, "output_dir=x"], arguments].concat());
        assert!(run.code == Some(2) && run.error().contains(error), "{arguments:?}: {:?} {}", run.code, run.err);
    };
    refused(&["use_dora=true"], "use_dora is not possible on experts");
    refused(&["additional_target=down_proj"], "would train experts whole beside an adapter");
    refused(&["lora_target=experts.3.down_proj"], "which this model doesn't have; its modules are");
    refused(&["moe_aux_loss_coef=-1"], "moe_aux_loss_coef");
    // A name from the middle of a block's tree would match nothing, as it does in LLaMA-Factory.
    let within = "freeze_trainable_modules names `experts`, which this model doesn't have; its modules are input_layernorm, mlp, \
                  post_attention_layernorm, self_attn";
    refused(&["finetuning_type=freeze", "freeze_trainable_modules=experts"], within);
}

/// As many rows as come out even on four ranks.
const ROWS: &str = "max_samples: 28\nnum_train_epochs: 2\nmax_steps: -1\nper_device_train_batch_size: 1\n\
                    gradient_accumulation_steps: 4\nlora_dropout: 0.1\nmoe_aux_loss_coef: 0.1\n";

/// Experts on two and four processes, alone and as replicas: one curve, and what is saved is whole.
#[test]
fn experts_on_several_processes_give_the_curve_of_one() {
    let model = mixture();
    for tuning in ["finetuning_type=lora", "finetuning_type=full"] {
        let one = trainable(ROWS);
        one.run(&["train", "train.yaml", &model, tuning]).ok();
        let want = losses(&one);
        let splits: [(usize, &[&str]); 3] = [
            (2, &["shard_size=2"]),
            (4, &["shard_size=2", "gradient_checkpointing=true"]),
            (4, &["shard_size=4", "max_tokens_per_micro_batch=64"]),
        ];
        for (ranks, split) in splits {
            let place = trainable(ROWS);
            let accumulation = format!("gradient_accumulation_steps={}", 4 / ranks);
            let given = [&[model.as_str(), tuning, "strategy=expert", &accumulation], split].concat();
            let told = run(&place, ranks, &given);
            let name = if split[0] == "shard_size=2" && ranks == 4 { "expert 2x2" } else { &format!("expert {ranks}") };
            assert!(told[0].err.contains(&format!("strategy: {name}")), "{}", told[0].err);
            let gap = gap(&losses(&place), &want);
            assert!(gap < 1e-5, "{given:?} on {ranks} ranks differs by {gap:e}");
            let file = if tuning.ends_with("lora") { "adapter_model.safetensors" } else { "model.safetensors" };
            let of = |place: &Place| tensors(&place.path("output").join(file));
            let (saved, alone) = (of(&place), of(&one));
            assert_eq!(saved.keys().collect::<Vec<_>>(), alone.keys().collect::<Vec<_>>());
            for (name, values) in &saved {
                assert_eq!(values.len(), alone[name].len(), "{name} is whole");
            }
        }
    }
}

/// Saved by four whose experts are spread, gone on with by two under zero3, then by two whose experts are spread over
/// others, finished and exported by one.
#[test]
fn a_checkpoint_of_spread_experts_serves_any_strategy() {
    let model = mixture();
    let rows = "max_samples: 28\nnum_train_epochs: 4\nmax_steps: -1\nper_device_train_batch_size: 1\n\
                gradient_accumulation_steps: 4\nsave_steps: 1\nsave_total_limit: 100\n";
    for tuning in ["finetuning_type=lora", "finetuning_type=full"] {
        let calm = trainable(rows);
        calm.run(&["train", "train.yaml", &model, tuning]).ok();
        let place = trainable(rows);
        // The schedule is that of the whole run, so each part is ended by a kill and not by a shorter run.
        for (ranks, steps, split) in [(4, 6, "strategy=expert"), (2, 12, "strategy=zero3"), (2, 18, "strategy=expert")]
        {
            let (accumulation, shards) =
                (format!("gradient_accumulation_steps={}", 4 / ranks), format!("shard_size={ranks}"));
            let mut given = vec![model.as_str(), tuning, split, &accumulation];
            given.extend(split.ends_with("expert").then_some(shards.as_str()));
            let mut children = start(&place, ranks, &given);
            reach(&place, steps);
            let last = ranks - 1;
            children[last].kill().unwrap();
            children.remove(last).wait().unwrap();
            end(&place, children);
        }
        let told = place.run(&["train", "train.yaml", &model, tuning]).ok();
        assert!(told.err.contains("going on from output/checkpoint-"), "{}", told.err);
        let gap = gap(&losses(&place), &losses(&calm));
        assert!(gap < 1e-4, "{tuning}: {gap:e}");
        let from: &[&str] = match tuning {
            "finetuning_type=lora" => &[&model, "adapter_name_or_path=output"],
            _ => &["model_name_or_path=output", "template=qwen3"],
        };
        place.run(&[&["export", "train.yaml", "export_dir=merged"], from].concat()).ok();
        assert!(place.path("merged/model.safetensors").exists());
    }
}

/// Three ranks, for which neither experts, nor tokens, nor batches of the evaluation come out even.
#[test]
fn ranks_with_experts_of_their_own_evaluate_and_answer_as_one_process_does() {
    let (rows, model) = (
        "val_size: 6\nmax_steps: -1\nnum_train_epochs: 2\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 6\n\
         eval_strategy: steps\neval_steps: 2\nper_device_eval_batch_size: 2\ncompute_accuracy: true\nmoe_aux_loss_coef: 0.1\n\
         sample_prompts: [Say 4, Say 7 and 49]\nlearning_rate: 0.01\npacking: false\n",
        mixture(),
    );
    let (one, three) = (trainable(rows), trainable(rows));
    let alone = one.run(&["train", "train.yaml", &model, "gradient_accumulation_steps=6"]).ok();
    let told = run(&three, 3, &[&model, "gradient_accumulation_steps=2", "strategy=expert"]);
    assert!(told[0].err.contains("strategy: expert 3"), "all ranks, where a node has one: {}", told[0].err);
    let states = [&one, &three].map(|place| place.json("output/trainer_state.json"));
    // What experts may take in at most isn't what they compute; rows beyond that are computed once more on the way back.
    let [want, got] = states.each_ref().map(|state| state["total_flos"].as_f64().unwrap());
    assert!((0.999..1.15).contains(&(got / want)), "{got} {want}");
    for key in ["loss", "eval_loss", "eval_accuracy", "aux_loss", "grad_norm"] {
        let [want, got] = states.each_ref().map(|state| curve(state, key));
        assert!(want.len() > 3 && gap(&got, &want) < 1e-5, "{key}: {got:?} {want:?}");
    }
    let answers = |told: &str| -> Vec<String> {
        let lines = told.lines().map(str::trim);
        lines.filter(|line| line.starts_with("before:") || line.starts_with("after:")).map(str::to_owned).collect()
    };
    assert_eq!(answers(&told[0].out), answers(&alone.out));
    assert_eq!(answers(&alone.out).len(), 4);

    // Rows of unequal lengths, which end in different places.
    let asked = |output: &'static str| {
        [
            "do_train=false",
            "eval_strategy=no",
            "compute_accuracy=false",
            "predict_with_generate=true",
            "do_predict=true",
        ]
        .into_iter()
        .chain(["max_new_tokens=7", "adapter_name_or_path=output", "sample_prompts=null", output])
        .collect::<Vec<_>>()
    };
    run(&three, 3, &[&[model.as_str(), "strategy=expert"], &asked("output_dir=several")[..]].concat());
    three.run(&[&["train", "train.yaml", &model], &asked("output_dir=alone")[..]].concat()).ok();
    let predicted =
        |output: &str| std::fs::read_to_string(three.path(output).join("generated_predictions.jsonl")).unwrap();
    assert_eq!(predicted("several"), predicted("alone"));
    assert_eq!(predicted("alone").lines().count(), 6);
}

/// Routers trained, gradients clipped hard, weights decayed, states in host memory, some blocks frozen: every number is that of all ranks.
#[test]
fn routers_that_train_beside_spread_experts_are_one() {
    let (model, rows) = (mixture(), format!("{ROWS}max_grad_norm: 0.05\nweight_decay: 0.2\nlearning_rate: 0.01\n"));
    let tunings: [&[&str]; 3] = [
        &["additional_target=gate", "loraplus_lr_ratio=4"],
        &["finetuning_type=full", "offload_optimizer=true", "overlap_communication=false"],
        &["finetuning_type=freeze", "freeze_trainable_layers=1"],
    ];
    for tuning in tunings {
        let (one, place) = (trainable(&rows), trainable(&rows));
        one.run(&[&["train", "train.yaml", &model], tuning].concat()).ok();
        run(&place, 2, &[&[model.as_str(), "strategy=expert", "gradient_accumulation_steps=2"], tuning].concat());
        let states = [&one, &place].map(|place| place.json("output/trainer_state.json"));
        for key in ["loss", "grad_norm", "aux_loss"] {
            let [want, got] = states.each_ref().map(|state| curve(state, key));
            assert!(gap(&got, &want) < 1e-5, "{tuning:?}, {key}: {got:?} {want:?}");
        }
        assert!(curve(&states[0], "grad_norm").iter().all(|norm| *norm > 0.05), "clipped in every step");
    }
}

#[test]
fn an_elastic_run_of_spread_experts_goes_on_with_fewer_machines() {
    let model = model("tiny-qwen3moe");
    elastic(&format!("model_name_or_path: {}\nstrategy: expert\n", model.display()));
}

#[test]
fn experts_that_a_model_does_not_have_are_not_spread() {
    let place = trainable("max_steps: 2\n");
    for told in end(&place, start(&place, 2, &["strategy=expert", "shard_size=2"])) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        assert!(
            told.error().contains("and the model has none; take another strategy, such as hybrid"),
            "{}",
            told.error()
        );
    }
    let refused = place.run(&["train", "train.yaml", "strategy=zero3", "shard_size=2"]);
    let told = "`shard_size` belongs to `strategy: hybrid` and `strategy: expert`, and the strategy is `zero3`";
    assert!(refused.error().contains(told), "{}", refused.error());
}
