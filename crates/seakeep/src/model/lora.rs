//! LoRA (Hu et al., arXiv 2106.09685): a low-rank path beside linear layers, trained while the model stays as it is.
//!
//! The matrices `A` and `B` are further tensors of the model, behind its own in the map, and the only trainable ones.
//! Their files have PEFT's names and shapes. Where one file tensor holds several linear maps (GPT-2's `c_attn`, GPT-NeoX's
//! `query_key_value`), PEFT sees one layer: the maps share `A`, and their `B`s lie in the file as the maps' biases do.

use std::borrow::Cow;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Model;
use super::blocks::{Adapter, Linear};
use super::config::{Family, ModelConfig};
use super::families::{self, DecoderParams};
use super::tensors::{FileTensor, Pack, ParamId, TensorMap};
use super::weights::{Stored, Weights};
use crate::error::nearest;
use crate::formats::adapter::{self, AdapterFiles, LoraConfig};
use crate::formats::{SaveDtype, write_atomic, write_safetensors_by};
use crate::{Error, Result};

/// The random stream of `A`; the order of rows takes those that count epochs.
const STREAM: u64 = u64::MAX;

/// The adapters of a model.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// What they are.
    pub config: LoraConfig,
    /// Their tensors on disk: of each layer `A`, then `B`.
    pub files: Vec<FileTensor>,
    /// The layers that have one.
    modules: Vec<String>,
    /// Number of the model's own tensors.
    own: usize,
}

/// A linear layer as PEFT sees it: one file tensor.
struct Module {
    name: String,
    /// The maps' weights, what sets each apart in its name, and where its outputs lie in the file.
    parts: Vec<(ParamId, String, Pack)>,
}

/// Where the outputs of a weight that lies so in its file lie in the file of an adapter's `B`, `[outputs of all, rank]`.
fn outputs(pack: Pack) -> Pack {
    match pack {
        Pack::Transposed { offset, .. } => Pack::Stacked { offset },
        other => other,
    }
}

/// The linear layers of the blocks, in the order of the map.
fn modules(map: &TensorMap, params: &DecoderParams) -> Vec<Module> {
    let mut is_linear = vec![false; map.params.len()];
    for linear in params.layers.iter().flat_map(|layer| layer.linears()) {
        is_linear[linear.weight.0] = true;
    }
    let module = |file: &FileTensor| {
        let name = file.name.strip_suffix(".weight")?.to_string();
        let part = |&(id, pack): &(ParamId, Pack)| {
            let label = map.params[id.0].name.strip_prefix(&file.name).unwrap_or_default();
            is_linear[id.0].then(|| (id, label.to_string(), outputs(pack)))
        };
        Some(Module { name, parts: file.parts.iter().map(part).collect::<Option<_>>()? })
    };
    map.files.iter().filter_map(module).collect()
}

/// As PEFT matches: the whole name, or its end after a dot.
fn is_named(module: &str, target: &str) -> bool {
    module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The last part of each name, each once.
fn last_parts<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for name in names.map(|name| name.rsplit('.').next().unwrap_or(name)) {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// The layers that a configuration asks for.
fn choose(modules: Vec<Module>, config: &LoraConfig) -> Result<Vec<Module>> {
    for target in &config.target_modules {
        if !modules.iter().any(|m| is_named(&m.name, target)) {
            let known = last_parts(modules.iter().map(|m| m.name.as_str()));
            let guess = nearest(target, known.iter().copied());
            let guess = guess.map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
            return Err(Error::Usage(format!(
                "lora_target_modules: `{target}` is no linear layer of this model's blocks; {guess}there are {} (or all-linear)",
                known.join(", ")
            )));
        }
    }
    let wanted = |m: &Module| {
        config.target_modules.is_empty() || config.target_modules.iter().any(|t| is_named(&m.name, t))
    };
    Ok(modules.into_iter().filter(wanted).collect())
}

/// The shapes of a layer's two tensors, of rank `r`.
fn shapes(map: &TensorMap, module: &Module, r: usize) -> [[usize; 2]; 2] {
    let parts = module.parts.iter().map(|(weight, ..)| &map.params[weight.0]);
    [[r, parts.clone().map(|p| p.cols).max().unwrap_or(0)], [parts.map(|p| p.rows).sum(), r]]
}

/// Checks that a model of this configuration has the layers that `lora` names, and is not smaller than its rank.
///
/// # Errors
/// [`Error::Usage`] for a name that it does not have, with the nearest one, or a rank beyond the width of every layer.
pub fn check_targets(config: &ModelConfig, lora: &LoraConfig) -> Result<()> {
    let (map, params) = families::tensors(config);
    let chosen = choose(modules(&map, &params), lora)?;
    let widest = chosen.iter().flat_map(|m| shapes(&map, m, 0)).flatten().max().unwrap_or(0);
    if lora.r > widest {
        return Err(Error::Usage(format!(
            "lora_r is {}, but no layer is wider than {widest}: a rank beyond the layer's own is no saving; expected mostly 4 to 64",
            lora.r
        )));
    }
    Ok(())
}

/// How many parameters the adapters have that `lora` asks for.
///
/// # Errors
/// As [`check_targets`].
pub(super) fn adapter_parameters(config: &ModelConfig, lora: &LoraConfig) -> Result<usize> {
    check_targets(config, lora)?;
    let (map, params) = families::tensors(config);
    let size = |module| shapes(&map, module, lora.r).iter().map(|[rows, cols]| rows * cols).sum::<usize>();
    Ok(choose(modules(&map, &params), lora)?.iter().map(size).sum())
}

/// PEFT's names of a layer's two tensors.
fn names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|matrix| format!("base_model.model.{module}.{matrix}.weight"))
}

impl Model {
    /// Gives the model fresh adapters, the only parameters that are trained from then on: `A` uniform within
    /// `1 / sqrt(inputs)` by `seed` (Kaiming with a = sqrt(5), as PEFT), `B` zero, so that the model computes what it did.
    ///
    /// # Errors
    /// As [`check_targets`].
    ///
    /// # Panics
    /// If the model has adapters.
    pub fn add_adapters(&mut self, config: &LoraConfig, seed: u64) -> Result<()> {
        check_targets(&self.config, config)?;
        let chosen = choose(modules(&self.map, &self.params), config)?;
        self.attach(config, &chosen);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(STREAM);
        let files = &self.adapters.as_ref().expect("just attached").files;
        for a in files.iter().step_by(2).map(|file| file.parts[0].0) {
            let bound = 1.0 / (self.map.params[a.0].cols as f64).sqrt();
            let draw = |x: &mut f32| *x = (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
            self.weights[a].iter_mut().for_each(draw);
        }
        Ok(())
    }

    /// Gives the model the adapters of these files; as [`add_adapters`](Self::add_adapters), they alone are trained.
    ///
    /// # Errors
    /// [`Error::Format`] for tensors that this model has no place for or that have another shape; values that are not finite.
    ///
    /// # Panics
    /// If the model has adapters.
    pub fn load_adapters(&mut self, files: &AdapterFiles) -> Result<()> {
        let there = files.weights.names();
        let has = |m: &Module| names(&m.name).iter().any(|name| files.weights.shape(name).is_some());
        let chosen: Vec<Module> = modules(&self.map, &self.params).into_iter().filter(has).collect();
        let wrong = |what| Err(Error::format(files.weights.path(), what));
        let known: Vec<String> = chosen.iter().flat_map(|m| names(&m.name)).collect();
        if let Some(unknown) = there.iter().find(|name| !known.iter().any(|known| known == *name)) {
            return wrong(format!(
                "tensor `{unknown}` belongs to no linear layer of the blocks of {}; either the adapter is of another model, or it \
                 changes more than these, which Seakeep does not read",
                files.base_model_name_or_path
            ));
        }
        // Before any memory is taken: a wrong `r` must not cost it.
        for module in &chosen {
            for (name, want) in names(&module.name).iter().zip(shapes(&self.map, module, files.config.r)) {
                let shape = files.weights.shape(name).unwrap_or_default();
                if shape != want {
                    return wrong(format!(
                        "tensor `{name}` is missing or has shape {shape:?}; the model and `r` ask for {want:?}"
                    ));
                }
            }
        }
        self.attach(&files.config, &chosen);
        for file in &self.adapters.as_ref().expect("just attached").files {
            for (id, values) in self.map.import(file, files.weights.read_f32(&file.name)?) {
                self.weights.set(id, Stored::F32(values));
            }
        }
        Ok(())
    }

    /// Adds the tensors of adapters on these layers, all 0.
    fn attach(&mut self, config: &LoraConfig, chosen: &[Module]) {
        assert!(self.adapters.is_none(), "a model has one set of adapters");
        let (own, rank, scale) = (self.map.params.len(), config.r, config.scale());
        self.map.params.iter_mut().for_each(|p| p.trainable = false);
        let mut files = Vec::new();
        for module in chosen {
            let [name_a, name_b] = names(&module.name);
            let [shape_a, shape_b] = shapes(&self.map, module, rank);
            let inputs = shape_a[1];
            let a = self.map.param(name_a.clone(), rank, inputs);
            let mut parts = Vec::new();
            for (weight, label, pack) in &module.parts {
                let rows = self.map.params[weight.0].rows;
                let b = self.map.param(format!("{name_b}{label}"), rows, rank);
                // Of rank 1 they are still no biases.
                self.map.params[b.0].decays = true;
                self.linear_mut(*weight).adapter = Some(Adapter { a, b, rank, scale });
                parts.push((b, *pack));
            }
            self.map.params[a.0].decays = true;
            files.push(FileTensor { name: name_a, shape: shape_a.to_vec(), parts: vec![(a, Pack::Whole)] });
            files.push(FileTensor { name: name_b, shape: shape_b.to_vec(), parts });
        }
        self.weights.fit(&self.map);
        let modules = chosen.iter().map(|m| m.name.clone()).collect();
        self.adapters = Some(Adapters { config: config.clone(), files, modules, own });
    }

    fn linear_mut(&mut self, weight: ParamId) -> &mut Linear {
        let mut linears = self.params.layers.iter_mut().flat_map(|layer| layer.linears_mut());
        linears.find(|linear| linear.weight == weight).expect("modules are made of the layers' linear maps")
    }

    /// Adds the adapters, if there are any, to the weights, and drops them: the model computes the same without them, up to
    /// rounding, and all of it is trainable again.
    pub fn merge_adapters(&mut self) {
        let Some(adapters) = self.adapters.take() else { return };
        for linear in self.params.layers.iter_mut().flat_map(|layer| layer.linears_mut()) {
            merge(linear, &mut self.weights);
        }
        self.map.params.truncate(adapters.own);
        self.map.params.iter_mut().for_each(|p| p.trainable = true);
        self.weights.fit(&self.map);
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `directory` (which must exist), each atomically, as PEFT
    /// reads them; `base` is where the model without them lies.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for values that are not finite; [`Error::Io`].
    ///
    /// # Panics
    /// If the model has no adapters.
    pub fn save_adapters(&self, directory: &Path, base: &Path, dtype: SaveDtype) -> Result<()> {
        let adapters = self.adapters.as_ref().expect("a model with adapters");
        let files = &adapters.files;
        let shapes: Vec<(&str, &[usize])> = files.iter().map(|f| (&*f.name, &*f.shape)).collect();
        write_safetensors_by(directory.join(adapter::TENSORS_FILE), &shapes, dtype, |i| {
            Cow::Owned(self.map.export(&files[i], &self.weights))
        })?;
        let config = &adapters.config;
        let targets = match config.target_modules.as_slice() {
            [] => last_parts(adapters.modules.iter().map(String::as_str)),
            given => given.iter().map(String::as_str).collect(),
        };
        let base = base.canonicalize().unwrap_or_else(|_| base.to_path_buf());
        let transposed = self.config.family == Family::Gpt2;
        let json = adapter::config_json(config, &targets, &base, transposed);
        let text = serde_json::to_string_pretty(&json).expect("JSON values serialise");
        write_atomic(directory.join(adapter::CONFIG_FILE), text.as_bytes())
    }
}

fn merge(linear: &mut Linear, weights: &mut Weights) {
    let Some((lora, _)) = linear.lora(weights) else { return };
    let mut merged = weights.stored(linear.weight).to_f32().into_owned();
    lora.merge(&mut merged);
    weights.set(linear.weight, Stored::F32(merged));
    linear.adapter = None;
}
