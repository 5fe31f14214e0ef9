//! LoRA adapters against PEFT: the same log-probabilities, and the gradient of every `A` and `B` for DPO and WDPO. Adapters and
//! values come from `scripts/parity/lora.py` (float64); the models below them are those of `tests/golden.rs`.
//!
//! Tolerances are those of `tests/golden.rs`: 2e-6 relative for log-probabilities, 5e-5 of a tensor's largest element for its
//! gradient (WDPO's second derivatives: 2e-4). Merged weights differ by one rounding each: 1e-5.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use seakeep::data::{Branch, Labels, Role, TokenizedPair};
use seakeep::formats::{AdapterFiles, LoraConfig, ModelSource, SaveDtype, Weights};
use seakeep::logps::{BranchLogps, Facts};
use seakeep::model::{KvCache, Model, Tensors};
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{Groups, Objective};
use seakeep::optim::{AdamW, AdamWState};
use seakeep::progress::Silent;
use seakeep::scoring::{PairLayout, score};
use seakeep::train::step::{GlobalBatch, Gradients, StepOutput, gradient};
use serde_json::{Value, json};

const CASES: [&str; 6] = ["llama", "llama_some", "gpt2", "gpt_neox", "llama_dora", "gpt2_dora"];

struct Case {
    name: &'static str,
    directory: PathBuf,
    base: PathBuf,
    golden: Value,
    beta: f64,
    pairs: Vec<TokenizedPair>,
    reference: BranchLogps,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn read(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn logps(v: &Value) -> BranchLogps {
    let floats = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
    BranchLogps::of_pairs(&floats(&v["chosen"]), &floats(&v["rejected"]))
}

fn case(name: &'static str) -> Case {
    let directory = goldens().join("lora").join(name);
    let golden = read(directory.join("golden.json"));
    let base = goldens().join(golden["base"].as_str().unwrap());
    let of_base = read(base.join("golden.json"));
    let tokens = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
    let branch =
        |role, v: &Value| Branch { role, completion: tokens(v), prompt_skip: 0, truncated: 0, cut: vec![] };
    let pairs = of_base["pairs"].as_array().unwrap().iter().enumerate().map(|(index, p)| TokenizedPair {
        file: Arc::from(Path::new("golden")),
        row: index + 1,
        index,
        prompt: tokens(&p["prompt"]),
        branches: vec![branch(Role::Chosen, &p["chosen"]), branch(Role::Rejected, &p["rejected"])],
        labels: Labels::default(),
        backed_off: 0,
    });
    let (pairs, reference) = (pairs.collect(), logps(&of_base["ref_logps"]));
    let beta = of_base["beta"].as_f64().unwrap();
    Case { name, directory, base, golden, beta, pairs, reference }
}

impl Case {
    fn base(&self) -> Model {
        Model::load(&ModelSource::open(&self.base).unwrap()).unwrap()
    }

    /// The base with PEFT's adapters beside its layers.
    fn adapted(&self) -> Model {
        let mut model = self.base();
        model.load_adapters(&AdapterFiles::open(&self.directory).unwrap()).unwrap();
        model
    }

    fn logps(&self, model: &Model) -> Vec<f64> {
        let pairs: Vec<&TokenizedPair> = self.pairs.iter().collect();
        score(model, &pairs, PairLayout::PLAIN, false, 3, &mut Silent).unwrap().logps.branches()
    }

    fn objective(&self, name: &str) -> Objective {
        let (rho, form) = (self.golden["rho"].as_f64().unwrap(), Form::Paper);
        let penalty =
            (name == "wdpo_shared").then_some(Penalty { rho, form, prompt_gradient: PromptGradient::Shared });
        Objective { penalty, ..Objective::dpo(self.beta) }
    }

    fn gradient(&self, model: &Model, name: &str, micro_batch: usize) -> (StepOutput, Tensors) {
        self.gradient_with(model, name, micro_batch, None)
    }

    fn gradient_with(
        &self,
        model: &Model,
        name: &str,
        micro_batch: usize,
        dropout: Option<(f32, u32)>,
    ) -> (StepOutput, Tensors) {
        let objective = self.objective(name);
        let pairs: Vec<&TokenizedPair> = self.pairs.iter().collect();
        let facts: Vec<Facts> = pairs.iter().map(|p| Facts::of(p, false)).collect();
        let (reference, groups) = (&self.reference, Groups::default());
        let global = GlobalBatch { pairs: &pairs, facts: &facts, reference, progress: 1.0, groups, dropout };
        let mut grads = Gradients::new(model);
        let out = gradient(model, &objective, &global, micro_batch, &mut grads).unwrap();
        (out, grads.total)
    }
}

fn relative(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs(), "{what}: got {got}, want {want}");
}

fn config(r: usize, target_modules: &[&str]) -> LoraConfig {
    let target_modules = target_modules.iter().map(|t| t.to_string()).collect();
    LoraConfig { target_modules, ..LoraConfig::plain(r, 4.0) }
}

#[test]
fn log_probabilities_are_pefts_beside_the_layers_and_merged() {
    for case in CASES.map(case) {
        let (beside, merged) =
            (case.adapted(), Model::load(&ModelSource::open(&case.directory).unwrap()).unwrap());
        assert!(merged.adapters.is_none() && merged.map.params.len() == case.base().map.params.len());
        let want = logps(&case.golden["policy_logps"]).branches();
        for ((beside, merged), want) in case.logps(&beside).iter().zip(case.logps(&merged)).zip(want) {
            relative(*beside, want, 2e-6, &format!("{}: logps", case.name));
            relative(merged, want, 1e-5, &format!("{}: logps, merged", case.name));
        }
    }
}

#[test]
fn gradients_of_every_adapter_and_of_nothing_else() {
    for case in CASES.map(case) {
        let (model, whole) =
            (case.adapted(), Weights::open(case.directory.join("golden.safetensors")).unwrap());
        let files = &model.adapters.as_ref().unwrap().files;
        for name in ["dpo", "wdpo_shared"] {
            let (out, grads) = case.gradient(&model, name, 3);
            let (want, what) = (&case.golden["objectives"][name], format!("{}: {name}", case.name));
            relative(out.loss, want["loss"].as_f64().unwrap(), 1e-5, &format!("{what}: loss"));
            relative(grads.norm(), want["grad_norm"].as_f64().unwrap(), 2e-5, &format!("{what}: grad_norm"));
            for file in files {
                let (got, key) = (model.map.export(file, &grads), format!("{name}/{}", file.name));
                let want = whole.read_f32(&key).unwrap();
                assert_eq!(whole.shape(&key).unwrap(), file.shape, "{key}");
                let tolerance = if name == "dpo" { 5e-5 } else { 2e-4 };
                let scale = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                for (g, w) in got.iter().zip(&want) {
                    assert!((g - w).abs() <= tolerance * scale, "{what}: {}: got {g}, want {w}", file.name);
                }
            }
            // What is frozen has not even a buffer.
            let held: usize = grads.iter().map(<[f32]>::len).sum();
            let adapters: usize = files.iter().map(|f| f.shape.iter().product::<usize>()).sum();
            assert_eq!((held, model.map.trainable()), (adapters, adapters));
            // Without a place for gradients the one at the embeddings is the same.
            if name == "dpo" {
                let batch = PairLayout::PLAIN.lay_out(&case.pairs);
                let (kept, seeds) = (model.forward(&batch), vec![1.0; batch.branches]);
                let at_embeddings = |mut to: Tensors| model.backward(&batch, &kept, &seeds, &mut to);
                let (none, all) = (Tensors::none(&model.map), Tensors::of_trainable(&model.map));
                assert_eq!(at_embeddings(none)[..], at_embeddings(all)[..]);
            }
            // With the penalty, parts take another way than the whole (seven products, not six), and these adapters are large: in f32 either
            // way is up to 2e-5 from the golden gradient.
            let tolerance = if name == "dpo" { 1e-5 } else { 3e-5 };
            for micro in [1, 2] {
                let (part, mut got) = case.gradient(&model, name, micro);
                relative(part.loss, out.loss, 5e-6, &what);
                got.add_scaled(&grads, -1.0);
                assert!(
                    got.norm() <= tolerance * grads.norm(),
                    "{what}, micro-batch {micro}: {}",
                    got.norm()
                );
            }
        }
    }
}

#[test]
fn a_step_moves_adapters_alone() {
    let case = case("gpt2");
    let mut model = case.base();
    model.add_adapters(&config(2, &[]), 7).unwrap();
    let before = model.weights.clone();
    let mut state = AdamWState::new(&model.map, &AdamW::default());
    let (_, grads) = case.gradient(&model, "dpo", 3);
    AdamW { weight_decay: 0.1, ..AdamW::default() }.step(
        &model.map,
        &mut model.weights,
        (&grads, 1.0),
        &mut state,
        0.1,
    );
    for ((before, after), spec) in before.iter().zip(model.weights.iter()).zip(&model.map.params) {
        // `A` by its decay alone: `B` is 0 at the start, and with it `A`'s gradient.
        assert_eq!(before != after, spec.trainable, "{}", spec.name);
    }
}

#[test]
fn fresh_adapters_change_nothing_and_follow_the_seed() {
    for case in CASES.map(case) {
        let base = case.base();
        let fresh = |seed| {
            let mut model = case.base();
            model.add_adapters(&config(2, &[]), seed).unwrap();
            model
        };
        let (one, same, other) = (fresh(1), fresh(1), fresh(2));
        assert_eq!(case.logps(&one), case.logps(&base), "{}: the same bits", case.name);
        assert!(one.weights == same.weights && one.weights != other.weights);
        let adapters = one.adapters.as_ref().unwrap();
        for pair in adapters.files.chunks_exact(2) {
            let bound = 1.0 / (pair[0].shape[1] as f32).sqrt();
            let (a, b) = (one.map.export(&pair[0], &one.weights), one.map.export(&pair[1], &one.weights));
            let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(largest <= bound && largest > 0.7 * bound, "{}: {largest}", pair[0].name);
            assert!(b.iter().all(|x| *x == 0.0), "{}", pair[1].name);
        }
    }
}

#[test]
fn fresh_magnitudes_are_the_lengths_of_rows() {
    for case in CASES.map(case) {
        let (base, mut model) = (case.base(), case.base());
        model.add_adapters(&LoraConfig { use_dora: true, ..config(2, &[]) }, 1).unwrap();
        for (got, want) in case.logps(&model).iter().zip(case.logps(&base)) {
            // Where there is a bias it is added after the product, not before.
            relative(*got, want, 1e-6, case.name);
        }
        let files = &model.adapters.as_ref().unwrap().files;
        let lengths = files.iter().filter(|file| file.name.ends_with("magnitude_vector"));
        assert_eq!(lengths.clone().count() * 3, files.len());
        assert!(lengths.flat_map(|file| model.map.export(file, &model.weights)).all(|m| m > 0.0));
    }
}

#[test]
fn dropout_does_not_depend_on_what_is_computed_together() {
    for case in ["llama", "gpt2_dora"].map(case) {
        let model = case.adapted();
        for name in ["dpo", "wdpo_shared"] {
            let of = |micro, dropout| case.gradient_with(&model, name, micro, dropout);
            let (plain, _) = of(3, None);
            let (whole, want) = of(3, Some((0.3, 5)));
            assert!((whole.loss - plain.loss).abs() > 1e-3, "it drops something");
            assert!(
                (of(3, Some((0.3, 6))).0.loss - whole.loss).abs() > 1e-4,
                "something else in another step"
            );
            for micro in [1, 2] {
                let (part, mut got) = of(micro, Some((0.3, 5)));
                relative(part.loss, whole.loss, 5e-6, case.name);
                got.add_scaled(&want, -1.0);
                // As without dropout.
                assert!(got.norm() <= 3e-5 * want.norm(), "{}: {name}, {micro}: {}", case.name, got.norm());
            }
        }
    }
}

#[test]
fn saved_adapters_come_back() {
    for case in CASES.map(case) {
        let (model, place) = (case.adapted(), tempfile::tempdir().unwrap());
        model.save_adapters(place.path(), &case.base, SaveDtype::F32).unwrap();
        let files = AdapterFiles::open(place.path()).unwrap();
        // The same tensors under the same names as PEFT's, and what decides what they mean.
        let theirs = AdapterFiles::open(&case.directory).unwrap();
        assert_eq!(files.weights.names(), theirs.weights.names());
        assert_eq!((files.config.r, files.config.scale()), (theirs.config.r, theirs.config.scale()));
        let json = read(place.path().join("adapter_config.json"));
        assert_eq!(json["fan_in_fan_out"], json!(case.name.starts_with("gpt2")));
        assert_eq!(json["use_dora"], json!(case.name.ends_with("dora")));
        let mut again = case.base();
        again.load_adapters(&files).unwrap();
        assert!(again.weights == model.weights, "{}", case.name);
    }
}

#[test]
fn generation_sees_adapters() {
    for case in CASES.map(case) {
        let (beside, merged) =
            (case.adapted(), Model::load(&ModelSource::open(&case.directory).unwrap()).unwrap());
        let logits = |model: &Model| {
            let mut cache = KvCache::new(&model.config);
            model.logits(&model.extend(&mut [&mut cache], &[&case.pairs[0].prompt]).unwrap())
        };
        let plain = logits(&case.base());
        for ((beside, merged), plain) in logits(&beside).iter().zip(logits(&merged).iter()).zip(plain.iter())
        {
            assert!((beside - merged).abs() <= 2e-5 * merged.abs().max(1.0), "{beside} {merged}");
            assert!((beside - plain).abs() > 1e-4, "{}: the adapter counts", case.name);
        }
    }
}

#[test]
fn targets_are_checked() {
    let case = case("llama");
    let message =
        |target: &str| case.base().add_adapters(&config(2, &["v_proj", target]), 1).unwrap_err().to_string();
    let text = message("q_porj");
    assert!(text.contains("`q_porj`") && text.contains("did you mean `q_proj`?"), "{text}");
    assert!(message("lm_head").contains("down_proj"), "{}", message("lm_head"));
    let text = case.base().add_adapters(&config(1 << 50, &[]), 1).unwrap_err().to_string();
    assert!(text.contains("lora_r is 1125899906842624") && text.contains("wider than 24"), "{text}");
    // An end of a name counts from a dot on.
    assert!(message("proj").contains("`proj`"));
    let mut model = case.base();
    model.add_adapters(&config(2, &["self_attn.q_proj", "model.layers.1.mlp.up_proj"]), 1).unwrap();
    let files = &model.adapters.as_ref().unwrap().files;
    let names: Vec<&str> = files.iter().step_by(2).map(|f| f.name.as_str()).collect();
    assert_eq!(
        names,
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
            .map(|m| format!("base_model.model.{m}.lora_A.weight"))
    );
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let (llama, gpt2) = (case("llama"), case("gpt2"));
    let files = AdapterFiles::open(&llama.directory).unwrap();
    let text = gpt2.base().load_adapters(&files).unwrap_err().to_string();
    assert!(text.contains("lora_A.weight` belongs to no linear layer"), "{text}");

    // The base that is named; the rank; a file that is missing.
    let place = tempfile::tempdir().unwrap();
    let open = |config: &Value| {
        std::fs::write(place.path().join("adapter_config.json"), config.to_string()).unwrap();
        ModelSource::open(place.path()).and_then(|s| Model::load(&s)).err().unwrap().to_string()
    };
    let mut config = read(llama.directory.join("adapter_config.json"));
    let text = open(&config);
    assert!(text.contains("no adapter_model.safetensors"), "{text}");
    let tensors = "adapter_model.safetensors";
    std::fs::copy(llama.directory.join(tensors), place.path().join(tensors)).unwrap();
    let text = open(&config);
    assert!(
        text.contains("`base_model_name_or_path` is \"../../llama\", which is not on this machine"),
        "{text}"
    );
    config["base_model_name_or_path"] = json!(llama.base);
    config["r"] = json!(4);
    let text = open(&config);
    assert!(text.contains("has shape [3, 16]; the model and `r` ask for [4, 16]"), "{text}");
    config["r"] = json!(1u64 << 60);
    let text = open(&config);
    assert!(text.contains("ask for [1152921504606846976, 16]"), "{text}");
    config["r"] = json!(3);
    config["use_dora"] = json!(true);
    let text = open(&config);
    assert!(text.contains("lora_magnitude_vector` is missing"), "{text}");
    let none = serde_json::json!({}).to_string();
    let empty = [&(none.len() as u64).to_le_bytes()[..], none.as_bytes()].concat();
    std::fs::write(place.path().join(tensors), empty).unwrap();
    let text = open(&config);
    assert!(text.contains("an adapter without any tensors"), "{text}");
    std::fs::write(place.path().join("config.json"), "{}").unwrap();
    let text = open(&config);
    assert!(text.contains("move one of them elsewhere"), "{text}");
}

/// `.ci/run` leaves this out by this name where there is no such Python.
mod needs_python {
    use super::*;

    #[test]
    #[ignore = "needs SEAKEEP_PYTHON with transformers and peft"]
    fn peft_loads_what_is_saved() {
        let python = std::env::var("SEAKEEP_PYTHON").expect("set SEAKEEP_PYTHON");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/parity/lora.py");
        for case in CASES.map(case) {
            let (model, place) = (case.adapted(), tempfile::tempdir().unwrap());
            model.save_adapters(place.path(), &case.base, SaveDtype::F32).unwrap();
            let rows: Vec<Value> = case
                .pairs
                .iter()
                .flat_map(|p| p.branches.iter().map(|b| json!([p.prompt, b.completion])))
                .collect();
            let file = place.path().join("rows.json");
            std::fs::write(&file, json!(rows).to_string()).unwrap();
            let arguments =
                ["--load".as_ref(), place.path().as_os_str(), "--rows".as_ref(), file.as_os_str()];
            let out = std::process::Command::new(&python).arg(&script).args(arguments).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let text = String::from_utf8(out.stdout).unwrap();
            let want: Vec<f64> = serde_json::from_str(text.lines().last().unwrap()).unwrap();
            for (got, want) in case.logps(&model).iter().zip(want) {
                relative(*got, want, 1e-5, case.name);
            }
        }
    }
}
