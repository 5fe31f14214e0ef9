//! Models from and to files, and at random.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use seakeep_kernels::gemm::Precision;
use serde_json::Value;

use super::tensors::{FileTensor, Pack, ParamId, ParamSpec, TensorMap};
use super::weights::{Keep, Numbers, Stored, Weights, stored};
use super::{Family, Model, ModelConfig, families};
use crate::formats::{self, ModelSource, SaveDtype, write_atomic, write_safetensors_by};
use crate::{Error, Result};

/// Standard deviation of random weights where `config.json` has no `initializer_range`.
const INITIALIZER_RANGE: f64 = 0.02;

/// Standard deviation of random weights.
fn initializer_range(config: &Value) -> f64 {
    config.get("initializer_range").and_then(Value::as_f64).unwrap_or(INITIALIZER_RANGE)
}

/// The name under which `weights` hold `file`: its own, or that of a checkpoint of the bare decoder.
fn find<'a>(weights: &formats::Weights, config: &ModelConfig, file: &'a FileTensor) -> Result<&'a str> {
    let name = file.name.as_str();
    if weights.shape(name).is_some() {
        return Ok(name);
    }
    if name == families::LABEL_HEAD && weights.shape(families::GATED_HEAD).is_some() {
        return Ok(families::GATED_HEAD);
    }
    let bare = name.strip_prefix(families::base_prefix(config.family));
    match bare {
        Some(bare) if weights.shape(bare).is_some() => Ok(bare),
        _ => Err(Error::format(
            weights.path(),
            format!("tensor `{name}` is missing, which the architecture in config.json needs"),
        )),
    }
}

/// As [`find`], and checks the shape.
fn find_shaped<'a>(source: &ModelSource, config: &ModelConfig, file: &'a FileTensor) -> Result<&'a str> {
    let name = find(&source.weights, config, file)?;
    let shape = source.weights.shape(name).unwrap_or_default();
    if shape == file.shape {
        return Ok(name);
    }
    Err(Error::format(
        source.weights.path_of(name).unwrap_or(&source.path),
        format!("tensor `{name}` has shape {shape:?}; config.json asks for {:?}", file.shape),
    ))
}

/// A layer in the file that the configuration does not have would be left out of what is trained and saved.
fn check_layers(source: &ModelSource, config: &ModelConfig, map: &TensorMap) -> Result<()> {
    let (last, next) = (format!(".{}.", config.layers - 1), format!(".{}.", config.layers));
    for file in map.files.iter().filter(|file| file.name.contains(&last)) {
        let beyond = FileTensor { name: file.name.replacen(&last, &next, 1), ..file.clone() };
        if let Ok(name) = find(&source.weights, config, &beyond) {
            return Err(Error::format(
                source.weights.path_of(name).unwrap_or(&source.path),
                format!(
                    "tensor `{name}` belongs to no layer: config.json says that there are {}",
                    config.layers
                ),
            ));
        }
    }
    Ok(())
}

/// A vocabulary projection in the file beside tied embeddings must be the embeddings.
fn check_tied(source: &ModelSource, config: &ModelConfig, map: &TensorMap) -> Result<()> {
    let embed = &map.files[0];
    let heads = ["lm_head.weight", "embed_out.weight"];
    let Some(head) = heads.into_iter().find(|head| config.tied && source.weights.shape(head).is_some())
    else {
        return Ok(());
    };
    if source.weights.read_f32(head)? == source.weights.read_f32(find(&source.weights, config, embed)?)? {
        return Ok(());
    }
    Err(Error::format(
        source.weights.path_of(head).unwrap_or(&source.path),
        format!(
            "tie_word_embeddings is true, but `{head}` is not `{}`: set it to false in config.json",
            embed.name
        ),
    ))
}

/// Asks for the model's memory in one piece, which the system refuses where it could never be had.
fn ensure_memory(map: &TensorMap, keep: Keep) -> Result<()> {
    let parameters =
        map.params.iter().try_fold(0usize, |sum, p| p.rows.checked_mul(p.cols)?.checked_add(sum));
    let bits = match keep {
        Keep::F32 => 32,
        Keep::Bf16 => 16,
        // What the file has is not known here; it is no less than this.
        Keep::AsStored | Keep::Quantised(_) => 4,
    };
    let bytes = parameters.and_then(|n| Some(n.checked_mul(bits)? / 8));
    if bytes.is_some_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok()) {
        return Ok(());
    }
    let gigabytes = bytes.map_or("more than 10^9".into(), |n| format!("{:.0}", n as f64 * 1e-9));
    let dtype = keep.name();
    Err(Error::Usage(format!(
        "config.json describes a model of {gigabytes} GB in {dtype}, more than there is memory"
    )))
}

impl Model {
    /// The configuration of a model on disk.
    ///
    /// # Errors
    /// A configuration that is unsupported or wrong, naming the model and the key.
    pub fn config(source: &ModelSource) -> Result<ModelConfig> {
        ModelConfig::from_json(&source.config).map_err(|e| Error::format(&source.path, e.to_string()))
    }

    /// Reads a model's weights, converted to f32; those of an adapter are merged into them.
    ///
    /// # Errors
    /// An unsupported configuration; a tensor that is missing, has another shape, or is not finite.
    pub fn load(source: &ModelSource) -> Result<Model> {
        Model::load_in(source, Numbers::default())
    }

    /// As [`load`](Self::load), with the weights kept and products computed as `numbers` say. An adapter's layers are merged in f32 and
    /// stay so.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_in(source: &ModelSource, numbers: Numbers) -> Result<Model> {
        if source.weights.shape(families::LABEL_HEAD).is_some() {
            return Err(Error::format(
                &source.path,
                format!(
                    "a reward model: it has a head of labels, `{}`; expected a language model (`seakeep reward` reads reward models)",
                    families::LABEL_HEAD
                ),
            ));
        }
        Model::load_as(source, Model::config(source)?, numbers, |_| false)
    }

    /// Reads a model's weights with a head of `labels` in place of the vocabulary projection. With a `new_head` its weights
    /// are not read but drawn with that seed, normal with `initializer_range`: for a start from a language model.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_labels(source: &ModelSource, labels: usize, new_head: Option<u64>) -> Result<Model> {
        let config = ModelConfig { labels: Some(labels), ..Model::config(source)? };
        let mut model = Model::load_as(source, config, Numbers::default(), |file| {
            new_head.is_some() && file.name == families::LABEL_HEAD
        })?;
        if let Some(seed) = new_head {
            let (std, head) = (initializer_range(&source.config), model.params.head);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            model.weights[head].iter_mut().for_each(|w| *w = (std * normal(&mut rng)) as f32);
        }
        Ok(model)
    }

    /// Reads the weights of a decoder of this configuration, those that are not to be left at 0.
    fn load_as(
        source: &ModelSource,
        config: ModelConfig,
        numbers: Numbers,
        leave: impl Fn(&FileTensor) -> bool,
    ) -> Result<Model> {
        let (map, params) = families::tensors(&config);
        let read: Vec<&FileTensor> = map.files.iter().filter(|file| !leave(file)).collect();
        // All names and shapes before any memory is taken: a wrong size in config.json must not cost it.
        let names =
            read.iter().map(|file| find_shaped(source, &config, file)).collect::<Result<Vec<&str>>>()?;
        check_layers(source, &config, &map)?;
        check_tied(source, &config, &map)?;
        ensure_memory(&map, numbers.keep)?;
        let is_matrix = params.matrices(&map);
        let keep = |id: ParamId| if is_matrix[id.0] { numbers.keep } else { Keep::F32 };
        let mut weights: Vec<Option<Stored>> = vec![None; map.params.len()];
        for (file, name) in read.into_iter().zip(names) {
            // One at a time: where the file's form is not kept, no more than one tensor is ever there in f32.
            match *file.parts.as_slice() {
                [(id, Pack::Whole)] if keep(id) == Keep::AsStored => {
                    weights[id.0] = Some(source.weights.read(name)?);
                }
                _ => {
                    let data = source.weights.read_f32(name)?;
                    for (id, values) in map.import(file, data) {
                        weights[id.0] = Some(stored(values, map.params[id.0].cols, keep(id)));
                    }
                }
            }
        }
        let left = |(read, spec): (Option<Stored>, &ParamSpec)| {
            read.unwrap_or_else(|| Stored::F32(vec![0.0; spec.rows * spec.cols]))
        };
        let weights = weights.into_iter().zip(&map.params).map(left).collect();
        let mut model = Model::with_weights(config, Weights::of(weights, numbers.precision));
        if let Some(adapter) = &source.adapter {
            model.load_adapters(adapter)?;
            model.merge_adapters();
        }
        Ok(model)
    }

    /// A randomly initialised model, as [`RandomModel`] describes it.
    ///
    /// # Errors
    /// An unsupported configuration.
    pub fn random(config: &Value, seed: u64) -> Result<Model> {
        let mut random = RandomModel::new(config, seed)?;
        ensure_memory(&random.map, Keep::F32)?;
        let ids = (0..random.map.params.len()).map(ParamId);
        let weights = ids.map(|id| Stored::F32(random.take(id))).collect();
        Ok(Model::with_weights(random.config, Weights::of(weights, Precision::F32)))
    }

    /// Writes `config.json` and `model.safetensors` into `directory` (which must exist), each atomically, as
    /// transformers reads them.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for weights that are not finite; [`Error::Io`].
    ///
    /// # Panics
    /// If the model has adapters: merge them, or save them alone.
    pub fn save(&self, directory: &Path, config: &Value, dtype: SaveDtype) -> Result<()> {
        assert!(self.adapters.is_none(), "adapters are merged or saved alone");
        write(directory, config, dtype, &self.map, |file| self.map.export(file, &self.weights))
    }
}

/// Writes a model's tensors, one after another, and its configuration.
fn write(
    directory: &Path,
    config: &Value,
    dtype: SaveDtype,
    map: &TensorMap,
    mut values: impl FnMut(&FileTensor) -> Vec<f32>,
) -> Result<()> {
    let tensors: Vec<(&str, &[usize])> =
        map.files.iter().map(|f| (f.name.as_str(), f.shape.as_slice())).collect();
    let path = directory.join("model.safetensors");
    write_safetensors_by(path, &tensors, dtype, |i| Cow::Owned(values(&map.files[i])))?;
    let mut config = config.clone();
    if let Some(config) = config.as_object_mut() {
        config.remove("torch_dtype");
        // Of how the weights that were read had been stored; these are whole.
        config.remove("quantization_config");
        config.insert("dtype".into(), dtype.torch_name().into());
    }
    let text = serde_json::to_string_pretty(&config).expect("JSON values serialise");
    write_atomic(directory.join("config.json"), text.as_bytes())
}

/// A randomly initialised model: weights normal with `initializer_range`, gains 1, biases 0, as transformers does it (the same
/// distribution, not the same numbers). The same seed gives the same model. Its tensors are made one after another, so that a model may be
/// written that is larger than memory.
pub struct RandomModel {
    /// What the decoder is.
    pub config: ModelConfig,
    /// Its tensors, in memory and on disk.
    pub map: TensorMap,
    std: f64,
    rng: ChaCha8Rng,
    next: usize,
    /// Those that were made before their turn on disk.
    waiting: BTreeMap<usize, Vec<f32>>,
}

impl RandomModel {
    /// Of this `config.json`.
    ///
    /// # Errors
    /// An unsupported configuration.
    pub fn new(config: &Value, seed: u64) -> Result<Self> {
        let std = initializer_range(config);
        let config = ModelConfig::from_json(config)?;
        let (map, rng) = (families::tensors(&config).0, ChaCha8Rng::seed_from_u64(seed));
        Ok(RandomModel { config, map, std, rng, next: 0, waiting: BTreeMap::new() })
    }

    /// A tensor; each may be taken once.
    fn take(&mut self, id: ParamId) -> Vec<f32> {
        while self.next <= id.0 {
            let spec = &self.map.params[self.next];
            let mut values = vec![0.0; spec.rows * spec.cols];
            if spec.cols > 1 {
                // What GPT-2 adds to the residual stream, twice a layer.
                let adds = self.config.family == Family::Gpt2 && spec.name.contains("c_proj");
                let layers = if adds { 2.0 * self.config.layers as f64 } else { 1.0_f64 };
                let std = self.std / layers.sqrt();
                values.iter_mut().for_each(|w| *w = (std * normal(&mut self.rng)) as f32);
            } else if spec.name.ends_with(".weight") {
                values.fill(1.0);
            }
            self.waiting.insert(self.next, values);
            self.next += 1;
        }
        self.waiting.remove(&id.0).expect("each tensor is taken once")
    }

    /// Writes the model as [`Model::save`] does.
    ///
    /// # Errors
    /// As there.
    pub fn save(mut self, directory: &Path, config: &Value, dtype: SaveDtype) -> Result<()> {
        let map = self.map.clone();
        write(directory, config, dtype, &map, |file| map.gather(file, |id| Cow::Owned(self.take(id))))
    }
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}
