//! What the plan is fed with at run time: ranks and wires, measured. Times differ from run to run; what holds always is
//! tested here, and how near the plan comes to real steps is `cargo bench -p ferrotune-train --bench validate`.

use ferrotune_config::plan::{FreezePlan, Tuning};
use ferrotune_dist::threads;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::plan::{Link, Probe, measure_rates};
use std::time::Duration;

#[test]
fn all_ranks_learn_the_same_of_their_wires() {
    for (world, per_node) in [(1, 1), (2, 1), (4, 2), (3, 2), (4, 4)] {
        let probes = threads::run(world, |comm| Probe::new(&*comm, &Device::cpu(), per_node).unwrap());
        assert!(probes.iter().all(|probe| *probe == probes[0]), "{world} ranks: {probes:?}");
        let Probe { links, hops: [inside, across] } = &probes[0];
        // A ring inside each node of several ranks, and one across for each rank that has a counterpart.
        let rings = match (world, per_node) {
            (1, 1) => (0, 0),
            (2, 1) => (0, 2),
            (4, 2) => (4, 4),
            (3, 2) => (2, 2),
            _ => (4, 0),
        };
        assert_eq!((inside.len(), across.len()), rings);
        for (link, hops) in [(links.inside, inside), (links.across, across)] {
            if hops.is_empty() {
                assert_eq!(link, Link::FREE);
                continue;
            }
            let positive = |rate: f64| rate > 0.0 && rate.is_finite();
            assert!(positive(link.bandwidth) && positive(link.shared) && positive(link.latency), "{link:?}");
            assert!(hops.iter().all(|hop| positive(hop.bandwidth) && hop.from != hop.to), "{hops:?}");
        }
    }
}

#[test]
fn all_ranks_reckon_with_the_slowest() {
    let config = Config::from_json(&serde_json::json!({
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
    }))
    .unwrap();
    let last = FreezePlan { layers: 1, modules: Vec::new(), extra_modules: Vec::new() };
    for (tuning, dtype) in [(Tuning::Full, DType::F32), (Tuning::Freeze(last), DType::Bf16)] {
        for lengths in [&[][..], &[1], &[1, 1], &[50, 3, 200]] {
            let rates = threads::run(2, |comm| {
                let model = Model::new(&config, dtype, Some(&tuning), false).unwrap();
                measure_rates(&model, &Device::cpu(), lengths, &*comm, Duration::from_millis(600)).unwrap()
            });
            assert_eq!(rates[0], rates[1]);
            let found = [rates[0].blocks, rates[0].head, rates[0].update];
            assert!(found.iter().all(|rate| *rate > 1e3 && rate.is_finite()), "{lengths:?}: {rates:?}");
        }
    }
}
