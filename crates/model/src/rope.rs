//! Rotary position embedding: frequencies with every scaling the supported families use, and the tables of a batch.
//!
//! Formulas: RoPE, <https://arxiv.org/abs/2104.09864>; YaRN, <https://arxiv.org/abs/2309.00071>; the others as in
//! transformers' `modeling_rope_utils.py`. Frequencies and angles are rounded to f32 where transformers rounds
//! them, since at position 30,000 that rounding is what a reader of the golden values sees.

use crate::ModelError;
use ferrotune_config::plan;
use serde_json::{Map, Value};

/// Rotary settings of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// Scaling for sequences longer than those of pretraining.
    pub scaling: Scaling,
}

/// Position scaling.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// NTK-aware: the base grows once a sequence exceeds `original` positions.
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Positions of pretraining.
        original: usize,
    },
    /// YaRN: high frequencies kept, low ones divided, a ramp between, attention made sharper.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Positions of pretraining.
        original: usize,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Scale of cos and sin.
        attention_factor: f64,
        /// Round the ramp's ends to whole dimensions.
        truncate: bool,
    },
    /// Llama 3's piecewise rule on wavelengths.
    Llama3 {
        /// Stretch.
        factor: f64,
        /// Positions of pretraining.
        original: usize,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
    },
}

impl RopeConfig {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
    pub fn from_json(json: &Value, max_position_embeddings: usize) -> Result<Self, ModelError> {
        let parameters =
            ["rope_parameters", "rope_scaling"].iter().find_map(|k| json.get(*k).filter(|v| v.is_object()));
        let key = if json.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let theta = parameters.and_then(|p| p.get("rope_theta")).or_else(|| json.get("rope_theta"));
        let theta = theta.and_then(Value::as_f64).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(bad("rope_theta", &theta.to_string(), "a positive number"));
        }
        let scaling = match parameters {
            Some(p) => read_scaling(p, key, max_position_embeddings)?,
            None => Scaling::None,
        };
        Ok(Self { theta, scaling })
    }

    /// `head_dim / 2` inverse frequencies and the scale of cos and sin, for sequences of up to `len` positions.
    pub fn frequencies(&self, head_dim: usize, len: usize) -> (Vec<f32>, f32) {
        let base = |theta: f64| -> Vec<f64> {
            // The exponent is rounded to f32 first, as torch does.
            let power = |i: usize| f64::from((2 * i) as f32 / head_dim as f32);
            (0..head_dim / 2).map(|i| f64::from((1.0 / theta.powf(power(i))) as f32)).collect()
        };
        let plain = base(self.theta);
        let (scaled, scale) = match self.scaling {
            Scaling::None => (plain, 1.0),
            Scaling::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
            Scaling::Dynamic { factor, original } => {
                let len = len.max(original) as f64 / original as f64;
                let dim = head_dim as f64;
                (base(self.theta * (factor * len - (factor - 1.0)).powf(dim / (dim - 2.0))), 1.0)
            }
            Scaling::Llama3 { factor, original, low, high } => {
                (plain.iter().map(|&f| llama3(f, factor, original as f64, low, high)).collect(), 1.0)
            }
            Scaling::Yarn { attention_factor, .. } => (self.yarn(&plain, head_dim), attention_factor),
        };
        (scaled.into_iter().map(|f| f as f32).collect(), scale as f32)
    }

    fn yarn(&self, plain: &[f64], head_dim: usize) -> Vec<f64> {
        let Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return plain.to_vec();
        };
        // The dimension whose frequency makes `rotations` turns in `original` positions.
        let dimension = |rotations: f64| {
            let turns = original as f64 / (rotations * 2.0 * std::f64::consts::PI);
            head_dim as f64 * turns.ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high {
            high += 0.001; // avoids 0 / 0, as the original does
        }
        let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        plain.iter().enumerate().map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect()
    }

    /// cos and sin of each position, `[positions, head_dim / 2]` row-major.
    pub fn tables(&self, head_dim: usize, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let len = positions.iter().max().map_or(0, |&p| p as usize + 1);
        let (frequencies, scale) = self.frequencies(head_dim, len);
        let mut tables = (Vec::new(), Vec::new());
        for &position in positions {
            for &frequency in &frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                tables.0.push(cos as f32 * scale);
                tables.1.push(sin as f32 * scale);
            }
        }
        tables
    }
}

/// A recipe's scaling of a model made for `trained` positions, by the keys of transformers' `rope_parameters`.
pub(crate) fn asked_for(kind: plan::RopeScaling, factor: usize, trained: usize) -> Map<String, Value> {
    let name = match kind {
        plan::RopeScaling::Linear => "linear",
        plan::RopeScaling::Dynamic => "dynamic",
        plan::RopeScaling::Yarn => "yarn",
        plan::RopeScaling::Llama3 => "llama3",
    };
    let mut keys =
        Map::from_iter([("rope_type".to_owned(), name.into()), ("factor".to_owned(), (factor as f64).into())]);
    if kind != plan::RopeScaling::Linear {
        keys.insert("original_max_position_embeddings".to_owned(), trained.into());
    }
    if kind == plan::RopeScaling::Llama3 {
        keys.insert("low_freq_factor".to_owned(), 1.0.into());
        keys.insert("high_freq_factor".to_owned(), 4.0.into());
    }
    keys
}

fn llama3(frequency: f64, factor: f64, original: f64, low: f64, high: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// YaRN's attention scale.
fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

fn read_scaling(json: &Value, key: &str, max_positions: usize) -> Result<Scaling, ModelError> {
    let number = |name: &str| json.get(name).and_then(Value::as_f64);
    let kind = json.get("rope_type").or_else(|| json.get("type")).and_then(Value::as_str).unwrap_or("default");
    if kind == "default" {
        return Ok(Scaling::None);
    }
    let factor = number("factor").filter(|f| f.is_finite() && *f >= 1.0);
    let factor = factor.ok_or_else(|| bad(&format!("{key}.factor"), "missing or below 1", "a number of at least 1"))?;
    let original = json.get("original_max_position_embeddings").and_then(Value::as_u64).map(|n| n as usize);
    let original = original.filter(|n| *n > 0).unwrap_or(max_positions);
    match kind {
        "linear" => Ok(Scaling::Linear { factor }),
        "dynamic" => Ok(Scaling::Dynamic { factor, original }),
        "llama3" => {
            let (low, high) = (number("low_freq_factor").unwrap_or(1.0), number("high_freq_factor").unwrap_or(4.0));
            if low >= high {
                return Err(bad(&format!("{key}.high_freq_factor"), &high.to_string(), "more than low_freq_factor"));
            }
            Ok(Scaling::Llama3 { factor, original, low, high })
        }
        "yarn" => {
            let given = number("attention_factor");
            let ratio = number("mscale").zip(number("mscale_all_dim"));
            let derived = ratio.map_or_else(|| mscale(factor, 1.0), |(m, all)| mscale(factor, m) / mscale(factor, all));
            Ok(Scaling::Yarn {
                factor,
                original,
                beta_fast: number("beta_fast").unwrap_or(32.0),
                beta_slow: number("beta_slow").unwrap_or(1.0),
                attention_factor: given.unwrap_or(derived),
                truncate: json.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            })
        }
        other => Err(bad(&format!("{key}.rope_type"), other, "default, linear, dynamic, yarn or llama3")),
    }
}

fn bad(key: &str, found: &str, expected: &str) -> ModelError {
    ModelError::BadValue { key: key.into(), found: found.into(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_frequencies_are_a_geometric_series() {
        let rope = RopeConfig { theta: 10_000.0, scaling: Scaling::None };
        let (frequencies, scale) = rope.frequencies(8, 100);
        assert_eq!(scale, 1.0);
        for (got, want) in frequencies.iter().zip([1.0f32, 0.1, 0.01, 0.001]) {
            assert!((got - want).abs() < 1e-7 * want.max(1e-2));
        }
    }

    #[test]
    fn each_scaling_keeps_or_divides_the_ends() {
        let ends = |scaling: Scaling, len| {
            let (f, _) = RopeConfig { theta: 1e6, scaling }.frequencies(64, len);
            (f[0], f[31])
        };
        let plain = ends(Scaling::None, 1);
        let llama3 = ends(Scaling::Llama3 { factor: 8.0, original: 128, low: 1.0, high: 4.0 }, 1);
        assert_eq!(llama3.0, plain.0);
        assert!((llama3.1 * 8.0 - plain.1).abs() < 1e-9);
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096});
        let yarn = RopeConfig::from_json(&json!({"rope_theta": 1e6, "rope_scaling": yarn}), 16384).unwrap();
        let (f, scale) = yarn.frequencies(64, 1);
        assert_eq!(f[0], plain.0);
        assert!((f[31] * 4.0 - plain.1).abs() < 1e-9);
        assert!((scale - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
        assert_eq!(ends(Scaling::Dynamic { factor: 2.0, original: 512 }, 512), plain);
        assert!(ends(Scaling::Dynamic { factor: 2.0, original: 512 }, 1024).1 < plain.1);
    }

    #[test]
    fn an_unknown_scaling_is_refused() {
        let json = json!({"rope_scaling": {"type": "longrope", "factor": 2.0}});
        let message = RopeConfig::from_json(&json, 100).unwrap_err().to_string();
        assert_eq!(
            message,
            "config.json: `rope_scaling.rope_type` is longrope, expected default, linear, dynamic, yarn or llama3"
        );
    }
}
