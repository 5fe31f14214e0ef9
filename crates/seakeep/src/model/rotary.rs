//! Rotary frequencies from a `config.json`.

use serde_json::Value;

use super::config::{Keys, Positions};
use crate::{Error, Result};

/// Rotary frequencies `base^(-2i/R)`, in f32 as PyTorch computes them, with the config's scaling applied.
/// Reads both layouts of the config: `rope_parameters` (transformers 5), and `rope_scaling` beside the family's own keys, which say `base` and
/// `share` (of a head's channels).
pub(super) fn rotary(keys: &Keys, head_dim: usize, base: f64, share: f64) -> Result<Positions> {
    // Far above any model; the frequencies are made before tensors are looked for.
    const WIDEST_HEAD: usize = 1 << 16;
    if head_dim > WIDEST_HEAD {
        return Err(Keys::bad("head_dim", &format!("is {head_dim}; expected at most {WIDEST_HEAD}")));
    }
    let scaling = Keys(rope_settings(keys)?);
    let base = scaling.positive("rope_theta", base)? as f32;
    let share = scaling.number("partial_rotary_factor", share)?;
    if !(share > 0.0 && share <= 1.0) {
        return Err(Keys::bad("partial_rotary_factor", &format!("is {share}; expected above 0, at most 1")));
    }
    // An odd number makes a pair more, as in transformers.
    let turned = (head_dim as f64 * share) as usize;
    let plain: Vec<f32> = (0..turned).step_by(2).map(|i| 1.0 / base.powf(i as f32 / turned as f32)).collect();
    let given = |key: &str| match scaling.get(key) {
        Some(_) => Ok(scaling.positive(key, 1.0)? as f32),
        None => Err(Keys::bad(key, "is missing in the rotary scaling")),
    };
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    let inverse_frequencies = match kind {
        "default" => plain,
        "linear" => {
            let factor = given("factor")?;
            plain.iter().map(|f| f / factor).collect()
        }
        "llama3" => {
            let [factor, low, high] =
                [given("factor")?, given("low_freq_factor")?, given("high_freq_factor")?];
            // As transformers: the key beside the scaling counts before the one in it, and without either the longest text's.
            let old = "original_max_position_embeddings";
            let within = scaling.positive(old, keys.positive("max_position_embeddings", 2048.0)?)?;
            let old = keys.positive(old, within)? as f32;
            let stretch = |f: &f32| {
                let wavelength = 2.0 * std::f32::consts::PI / f;
                if wavelength > old / low {
                    f / factor
                } else if wavelength < old / high {
                    *f
                } else {
                    let smooth = (old / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            };
            plain.iter().map(stretch).collect()
        }
        other => {
            return Err(Error::Unsupported {
                what: format!("config.json: rotary scaling `{other}`"),
                supported: "default, linear, llama3".into(),
            });
        }
    };
    Ok(Positions::Rotary { inverse_frequencies })
}

/// The object of rotary settings, by either of its names.
fn rope_settings<'a>(keys: &Keys<'a>) -> Result<&'a Value> {
    static NOTHING: Value = Value::Null;
    let [new, old] =
        ["rope_parameters", "rope_scaling"].map(|key| (key, keys.0.get(key).filter(|v| !v.is_null())));
    let (key, found) = match (new, old) {
        ((_, Some(a)), (_, Some(b))) if a != b => {
            return Err(Keys::bad(
                "rope_scaling",
                "stands beside another `rope_parameters`; keep one of them",
            ));
        }
        ((key, Some(found)), _) | (_, (key, Some(found))) => (key, found),
        _ => return Ok(&NOTHING),
    };
    match found.as_object() {
        Some(settings) if settings.values().any(Value::is_object) => Err(Error::Unsupported {
            what: format!("config.json: `{key}` by kind of layer"),
            supported: "the same rotary embedding in all layers".into(),
        }),
        Some(_) => Ok(found),
        None => Err(Keys::bad(
            key,
            &format!("is {found}; expected an object such as {{\"rope_type\": \"linear\", \"factor\": 2.0}}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use serde_json::json;

    fn llama() -> Value {
        json!({"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "num_attention_heads": 2,
               "num_hidden_layers": 2, "intermediate_size": 12})
    }

    fn frequencies(config: &Value) -> Vec<f32> {
        match ModelConfig::from_json(config).unwrap().positions {
            Positions::Rotary { inverse_frequencies } => inverse_frequencies,
            Positions::Learned => panic!(),
        }
    }

    /// Each as transformers 5.23 computes it (`scripts/parity`'s models, and others with the keys left out).
    #[test]
    fn rotary_keys_count_as_in_transformers() {
        let with = |edits: &[(&str, Value)]| {
            let mut v = llama();
            edits.iter().for_each(|(key, value)| v[*key] = value.clone());
            frequencies(&v)
        };
        let llama3 =
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let within = |n: usize| {
            let mut v = llama3.clone();
            v["original_max_position_embeddings"] = json!(n);
            v
        };
        let old = |n: usize| with(&[("rope_scaling", within(n))]);
        assert!(old(64) != old(2048));
        assert_eq!(with(&[("rope_scaling", llama3.clone())]), old(2048), "the longest text");
        let beside = ("original_max_position_embeddings", json!(64));
        assert_eq!(with(&[("rope_scaling", llama3.clone()), beside.clone()]), old(64));
        assert_eq!(with(&[("rope_scaling", within(32)), beside]), old(64));

        let neox = |edits: &[(&str, Value)]| {
            let mut v = llama();
            v["model_type"] = json!("gpt_neox");
            v["hidden_size"] = json!(40);
            edits.iter().for_each(|(key, value)| v[*key] = value.clone());
            frequencies(&v)
        };
        // 5 channels of 20: three pairs, with exponents over 5.
        let pairs = [0.0, 2.0, 4.0].map(|i: f32| 1.0 / 10_000f32.powf(i / 5.0));
        assert_eq!(neox(&[]), pairs);
        assert_eq!(neox(&[("rope_theta", json!(7.0)), ("partial_rotary_factor", json!(0.5))]), pairs);
        assert_eq!(neox(&[("rope_parameters", json!({"partial_rotary_factor": 0.1}))]).len(), 1);
    }
}
