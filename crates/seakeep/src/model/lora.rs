//! LoRA (Hu et al., arXiv 2106.09685): a low-rank path beside linear layers, trained while the model stays as it is.
//!
//! The matrices `A` and `B` are further tensors of the model, behind its own in the map, and the only trainable ones.
//! Their files have PEFT's names and shapes. Where one file tensor holds several linear maps (GPT-2's `c_attn`, GPT-NeoX's
//! `query_key_value`), PEFT sees one layer: the maps share `A`, and their `B`s lie in the file as the maps' biases do.
//!
//! With `use_dora` every layer has a third tensor, the lengths of the rows of its weight with the path added
//! ([`seakeep_kernels::dora`]).

use std::borrow::Cow;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Model;
use super::blocks::{Adapter, Linear, Params};
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
    /// Their tensors on disk: of each layer `A`, then `B`, then with DoRA the magnitudes.
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

/// PEFT's names of a layer's tensors, and their shapes: `A`, `B`, and with DoRA the magnitudes.
fn tensors(map: &TensorMap, module: &Module, config: &LoraConfig) -> Vec<(String, Vec<usize>)> {
    let parts = module.parts.iter().map(|(weight, ..)| &map.params[weight.0]);
    let inputs = parts.clone().map(|p| p.cols).max().unwrap_or(0);
    let outputs = parts.map(|p| p.rows).sum();
    let name = |what: &str| format!("base_model.model.{}.{what}", module.name);
    let mut all = vec![
        (name("lora_A.weight"), vec![config.r, inputs]),
        (name("lora_B.weight"), vec![outputs, config.r]),
    ];
    if config.use_dora {
        all.push((name("lora_magnitude_vector"), vec![outputs]));
    }
    all
}

/// Checks that a model of this configuration has the layers that `lora` names, and is not smaller than its rank.
///
/// # Errors
/// [`Error::Usage`] for a name that it does not have, with the nearest one, or a rank beyond the width of every layer.
pub fn check_targets(config: &ModelConfig, lora: &LoraConfig) -> Result<()> {
    let (map, params) = families::tensors(config);
    let chosen = choose(modules(&map, &params), lora)?;
    let of_rank_0 = LoraConfig { r: 0, ..lora.clone() };
    let sizes = chosen.iter().flat_map(|m| tensors(&map, m, &of_rank_0)).flat_map(|(_, shape)| shape);
    let widest = sizes.max().unwrap_or(0);
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
    let size = |module: &Module| {
        tensors(&map, module, lora).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>()
    };
    Ok(choose(modules(&map, &params), lora)?.iter().map(size).sum())
}

impl Model {
    /// Gives the model fresh adapters, the only parameters that are trained from then on: `A` uniform within
    /// `1 / sqrt(inputs)` by `seed` (Kaiming with a = sqrt(5), as PEFT), `B` zero, so that the model computes what it did; magnitudes
    /// are the lengths that rows have.
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
        let mut drawn = None;
        for linear in self.params.layers.iter().flat_map(|layer| layer.linears()) {
            let Some(Adapter { a, magnitude, .. }) = linear.adapter else { continue };
            // Maps that are fused on disk share it, and follow each other.
            if drawn.replace(a) != Some(a) {
                let bound = 1.0 / (self.map.params[a.0].cols as f64).sqrt();
                let draw = |x: &mut f32| *x = (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
                self.weights[a].iter_mut().for_each(draw);
            }
            if let Some(magnitude) = magnitude {
                let lengths = linear.lengths(Params::plain(&self.weights)).expect("it has an adapter");
                self.weights[magnitude].copy_from_slice(&lengths);
            }
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
        let of = |m: &Module| tensors(&self.map, m, &files.config);
        let has = |m: &Module| of(m).iter().any(|(name, _)| files.weights.shape(name).is_some());
        let chosen: Vec<Module> = modules(&self.map, &self.params).into_iter().filter(has).collect();
        let wrong = |what| Err(Error::format(files.weights.path(), what));
        let known: Vec<(String, Vec<usize>)> = chosen.iter().flat_map(of).collect();
        if let Some(unknown) = there.iter().find(|name| !known.iter().any(|(known, _)| known == *name)) {
            return wrong(format!(
                "tensor `{unknown}` belongs to no linear layer of the blocks of {}; either the adapter is of another model, or it \
                 changes more than these, which Seakeep does not read",
                files.base_model_name_or_path
            ));
        }
        if chosen.is_empty() {
            return wrong("an adapter without any tensors; where PEFT saved it from weights spread over several processes, gather them first".into());
        }
        // Before any memory is taken: a wrong `r` must not cost it.
        for (name, want) in &known {
            let shape = files.weights.shape(name).unwrap_or_default();
            if shape != *want {
                return wrong(format!(
                    "tensor `{name}` is missing or has shape {shape:?}; the model and `r` ask for {want:?}"
                ));
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
            let of_module = tensors(&self.map, module, config);
            let a = self.map.param(of_module[0].0.clone(), rank, of_module[0].1[1]);
            let mut parts = vec![vec![(a, Pack::Whole)]];
            parts.resize(of_module.len(), Vec::new());
            for (weight, label, pack) in &module.parts {
                let rows = self.map.params[weight.0].rows;
                let mut own = of_module.iter().zip(&mut parts).skip(1).map(|((name, shape), parts)| {
                    let id =
                        self.map.param(format!("{name}{label}"), rows, shape.get(1).copied().unwrap_or(1));
                    parts.push((id, *pack));
                    id
                });
                let (b, magnitude) = (own.next().expect("there is B"), own.next());
                drop(own);
                self.linear_mut(*weight).adapter = Some(Adapter { a, b, rank, scale, magnitude });
            }
            for ((name, shape), parts) in of_module.into_iter().zip(parts) {
                // Of rank 1 they are still no biases; and PEFT's magnitudes decay.
                parts.iter().for_each(|(id, _)| self.map.params[id.0].decays = true);
                files.push(FileTensor { name, shape, parts });
            }
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
    let w = Params::plain(weights);
    let Some((lora, _)) = linear.lora(w) else { return };
    let mut merged = w.stored(linear.weight).to_f32().into_owned();
    lora.merge(&mut merged);
    if let Some(factors) = linear.factors(w) {
        let rows = merged.chunks_exact_mut(linear.inputs).zip(factors);
        rows.for_each(|(row, factor)| row.iter_mut().for_each(|w| *w *= factor));
    }
    weights.set(linear.weight, Stored::F32(merged));
    linear.adapter = None;
}
