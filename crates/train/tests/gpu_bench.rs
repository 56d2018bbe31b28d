//! The benchmark of steps on GPUs, on one of paper: each shape in small, so that it runs when a GPU is at hand.

#[path = "../benches/gpu/case.rs"]
mod case;
#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../../tensor/tests/devices/gpus.rs"]
mod gpus;
#[path = "../benches/gpu/shapes.rs"]
mod shapes;

use case::Case;
use shapes::SHAPES;

#[test]
fn every_shape_is_measured() {
    for (number, shape) in SHAPES.into_iter().enumerate() {
        let case = Case { shape: shape.reduced(), tokens: 33, recompute: number % 2 == 0, steps: 3 };
        let line = case.run(&gpus::pooled("gpu=H200,seed=4")).unwrap();
        let of = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        assert_eq!((line["shape"].as_str(), line["same_bits"].as_bool()), (Some(shape.name), Some(true)), "{line}");
        for key in ["seconds", "tokens_per_second", "flops", "products"] {
            assert!(of(key) > 0.0, "{key} in {line}");
        }
        // The plan knows to the byte what a step takes; what the GPU gives for it is that and the ends of its blocks.
        assert_eq!(of("peak"), of("planned"), "{line}");
        assert!(of("taken") >= of("planned") && of("weights") < of("peak"), "{line}");
        assert!((of("loss") - 211f64.ln()).abs() < 0.5, "{line}");
        assert_eq!(line["config"]["num_hidden_layers"], 2);
        // On paper it is the same, by which records without a GPU are made.
        let paper = case.on_paper().unwrap();
        for key in ["peak", "weights", "trained"] {
            assert_eq!(paper[key], line[key], "{key} in {paper}");
        }
    }
}

/// Whole models, without a GPU: what is executed is what is needed, the adapters, and once more the blocks that are recomputed.
#[test]
fn operations_are_counted_on_paper() {
    let of = |recompute| {
        let shape = SHAPES.into_iter().find(|shape| shape.name == "qwen3-0.6b").unwrap();
        let line = Case { shape, tokens: 512, recompute, steps: 1 }.on_paper().unwrap();
        ["operations", "work", "peak"].map(|key| line[key].as_f64().unwrap())
    };
    let ([kept, work, most], [recomputed, same, least]) = (of(false), of(true));
    assert_eq!(work, same);
    assert!(work < kept && kept < 1.2 * work, "{kept} {work}");
    assert!(1.25 * kept < recomputed && recomputed < 1.5 * kept, "{recomputed} {kept}");
    assert!(least < most, "{least} {most}");
}

/// Of the 64 layers of the largest as many as a card holds, fewer on a smaller one.
#[test]
fn as_many_layers_as_fit() {
    let case = Case { shape: SHAPES[SHAPES.len() - 1], tokens: 2048, recompute: true, steps: 1 };
    let layers = |gib: u64| case.that_fits(gib << 30).unwrap().map(|case| case.shape.layers);
    assert_eq!(layers(140), Some(64));
    let on_80 = layers(80).unwrap();
    assert!((55..=64).contains(&on_80), "{on_80}");
    let on_24 = layers(24).unwrap();
    assert!((10..30).contains(&on_24), "{on_24}");
    assert_eq!(layers(1), None);
}
