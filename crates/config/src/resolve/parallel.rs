//! How the work is split over ranks: ferrotune's own keys, or what a DeepSpeed or FSDP configuration says of the same.

use super::deepspeed::{self, Foreign};
use crate::plan::{ParallelPlan, Strategy};
use crate::settings::Settings;
use std::time::Duration;

pub(super) fn parallel(s: &mut Settings<'_>) -> ParallelPlan {
    let foreign = foreign(s);
    let strategy = own_strategy(s).or(foreign.strategy);
    let seconds = |s: &Settings<'_>, name| Duration::from_secs_f64(s.float(name).min(1e9));
    let plan = ParallelPlan {
        strategy,
        use_cpu: s.bool("use_cpu"),
        offload_optimizer: s.bool("offload_optimizer") || foreign.offload_optimizer,
        offload_parameters: s.bool("offload_parameters") || foreign.offload_parameters,
        overlap: s.bool("overlap_communication") && foreign.overlap.unwrap_or(true),
        max_tokens_per_micro_batch: s.opt_count("max_tokens_per_micro_batch"),
        fits_micro_batch: s.bool("auto_find_batch_size"),
        rehearses: s.bool("rehearse_longest_batch"),
        peer_timeout: seconds(s, "peer_timeout"),
        join_timeout: seconds(s, "rendezvous_timeout"),
        save_on_each_node: s.bool("save_on_each_node"),
        rows_of_a_step: foreign.rows_of_a_step,
    };
    check(s, &plan);
    plan
}

fn own_strategy(s: &mut Settings<'_>) -> Option<Strategy> {
    let (shards, stages) = (s.opt_count("shard_size"), s.opt_count("pipeline_stages"));
    let text = s.text("strategy");
    let belongs: [(_, _, &[&str]); 2] =
        [("shard_size", shards, &["hybrid", "expert"]), ("pipeline_stages", stages, &["pipeline"])];
    for (name, value, of) in belongs {
        if value.is_some() && !of.contains(&text.as_str()) {
            let of = of.iter().map(|of| format!("`strategy: {of}`")).collect::<Vec<_>>().join(" and ");
            let message = format!("`{name}` belongs to {of}, and the strategy is `{text}`");
            s.error(name, message, &format!("write {}, or remove `{name}`", of.replace(" and ", " or ")));
        }
    }
    match text.as_str() {
        "replicate" => Some(Strategy::Replicate),
        "zero1" => Some(Strategy::Zero1),
        "zero2" => Some(Strategy::Zero2),
        "zero3" => Some(Strategy::Zero3),
        "hybrid" => Some(Strategy::Hybrid { shards }),
        "expert" => Some(Strategy::Expert { shards }),
        "pipeline" => Some(Strategy::Pipeline { stages }),
        _ => None,
    }
}

/// What `deepspeed`, `fsdp` and `fsdp_config` say.
fn foreign(s: &mut Settings<'_>) -> Foreign {
    let given: Vec<&'static str> =
        ["strategy", "deepspeed", "fsdp"].into_iter().filter(|name| s.is_set(name) && s.says(name)).collect();
    if let [first, second, ..] = given[..] {
        let message = format!("`{first}` and `{second}` both say how the run is split");
        s.error(second, message, &format!("keep one of them; `{first}` is enough"));
        return Foreign::default();
    }
    if s.is_set("fsdp_config") && !s.is_set("fsdp") {
        s.note("fsdp_config", "`fsdp_config` is not used: `fsdp` is not set", "write `fsdp: full_shard`");
    }
    if s.is_set("deepspeed") {
        return deepspeed::deepspeed(s);
    }
    if s.is_set("fsdp") { deepspeed::fsdp(s) } else { Foreign::default() }
}

fn check(s: &mut Settings<'_>, plan: &ParallelPlan) {
    let pipeline = matches!(plan.strategy, Some(Strategy::Pipeline { .. }));
    if pipeline && plan.offload_parameters {
        s.error(
            "strategy",
            "a pipeline keeps each block where it is computed; `offload_parameters` would bring it over for every micro-batch",
            "remove `offload_parameters`, or write `strategy: zero3`",
        );
    }
    if plan.max_tokens_per_micro_batch.is_some_and(|budget| budget < s.count("cutoff_len").min(16)) {
        s.error(
            "max_tokens_per_micro_batch",
            "`max_tokens_per_micro_batch` is below 16 tokens",
            "write how many tokens fit at once, such as 4096",
        );
    }
}
