//! What a user is told of a mixture of experts before it trains: which of its parts do, and what the loss is made of.

use crate::ui;
use ferrotune_config::plan::{LoraPlan, LoraTargets, Plan, Tuning};
use ferrotune_model::{Config, Model, expert_name};
use ferrotune_tensor::Param;
use ferrotune_train::router_aux_loss;

/// What `lora_target: all` takes of a mixture of experts, which LLaMA-Factory leaves out without a word.
pub(crate) fn experts_note(model: &Model, tuning: &Tuning) -> Option<String> {
    let Tuning::Lora(LoraPlan { targets: LoraTargets::All, .. }) = tuning else { return None };
    let moe = model.config().moe.as_ref()?;
    let trained = model.parameters().iter().map(|parameter| &parameter.param).filter(|param| param.trainable);
    let (experts, others): (Vec<_>, Vec<_>) = trained.partition(|param| expert_name(&param.name, 0).is_some());
    let (attention, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|param| param.name.contains(".self_attn."));
    let count = |params: &[&Param]| params.iter().map(|param| param.shape.numel()).sum::<usize>();
    let more = match count(&others) {
        0 => String::new(),
        more => format!(", and the rest ({})", ui::grouped(more)),
    };
    Some(format!(
        "lora_target: all takes the {} experts of each of {} blocks ({} parameters), attention ({}){more}; lora_target: \
         attention is attention alone. LLaMA-Factory's `all` leaves the experts out",
        moe.experts,
        moe.sparse.iter().filter(|sparse| **sparse).count(),
        ui::grouped(count(&experts)),
        ui::grouped(count(&attention)),
    ))
}

/// What is said of the loss on the balance of experts.
pub(crate) fn balance_note(config: &Config, plan: &Plan) -> Option<String> {
    let asked = plan.train.router_aux_loss;
    if config.moe.is_none() {
        return asked.map(|_| "moe_aux_loss_coef has no effect: the model has no experts".into());
    }
    let weight = router_aux_loss(plan, config);
    let by = if asked.is_some() { "moe_aux_loss_coef" } else { "output_router_logits in the model's config.json" };
    let again = match plan.train.accumulation {
        1 => "",
        _ => "; the micro-batches of a step go forward twice, to count first",
    };
    (weight != 0.0).then(|| {
        format!(
            "{by}: the loss has {weight} times that on the balance of experts in it (aux_loss in the logs), over each whole \
             step{again}"
        )
    })
}
