//! Hostile checkpoints: one test per malformation. Each must be an error that says what is wrong, and
//! never a panic, an endless loop or an allocation that the file's size does not warrant.

use std::path::{Path, PathBuf};

use half::bf16;
use seakeep::formats::gguf::{
    GgufFile, MAX_ALIGNMENT, MAX_ARRAY_ITEMS, MAX_METADATA, MAX_STRING_BYTES, MAX_TENSORS,
};
use seakeep::formats::{ModelSource, SaveDtype, Tokenizer, Weights, write_safetensors};
use seakeep_kernels::stored::Stored;
use serde_json::{Value, json};

/// A folder with a file in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

#[track_caller]
fn says<T: std::fmt::Debug>(result: seakeep::Result<T>, parts: &[&str]) {
    let text = result.unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

// ---- GGUF ------------------------------------------------------------------------------------------

/// Writes GGUF files, right and wrong.
#[derive(Default)]
struct Gguf {
    metadata: Vec<u8>,
    entries: u64,
    tensors: Vec<u8>,
    count: u64,
    data: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    fn llama() -> Gguf {
        Gguf::default().meta("general.architecture", 8, &string("llama")).meta(
            "llama.attention.head_count",
            4,
            &2u32.to_le_bytes(),
        )
    }

    fn meta(mut self, key: &str, kind: u32, value: &[u8]) -> Gguf {
        self.metadata.extend(string(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.entries += 1;
        self
    }

    /// `dims` in GGUF's order, innermost first.
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Gguf {
        self.tensors.extend(string(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| self.tensors.extend(d.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.count += 1;
        self
    }

    fn data(mut self, bytes: &[u8]) -> Gguf {
        self.data.extend(bytes);
        self
    }

    fn counts(&self, version: u32, tensors: u64, entries: u64) -> Vec<u8> {
        [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.counts(3, self.count, self.entries);
        out.extend(&self.metadata);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

#[track_caller]
fn gguf_says(bytes: Vec<u8>, parts: &[&str]) {
    let place = Place::new();
    says(GgufFile::open(place.file("m.gguf", bytes)), &[&["m.gguf"], parts].concat());
}

#[test]
fn the_writer_of_these_tests_writes_what_is_read() {
    let floats: Vec<u8> =
        [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let place = Place::new();
    let path = place
        .file("m.gguf", Gguf::llama().tensor("blk.0.attn_q.weight", &[2, 4], 0, 0).data(&floats).bytes());
    let weights = Weights::open(path).unwrap();
    assert_eq!(weights.names(), ["model.layers.0.self_attn.q_proj.weight"]);
    assert_eq!(weights.read_f32(weights.names()[0]).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
}

#[test]
fn gguf_in_bf16_is_read_as_it_is() {
    // Whole numbers up to 15 are exact in bf16. The rows of each of two heads lie in pairs.
    let values: Vec<u8> = (0..16u8).flat_map(|x| bf16::from_f32(x.into()).to_le_bytes()).collect();
    let place = Place::new();
    let file = Gguf::llama().tensor("blk.0.attn_q.weight", &[2, 8], 30, 0).data(&values);
    let weights = Weights::open(place.file("m.gguf", file.bytes())).unwrap();
    let stored = weights.read("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert!(matches!(stored, Stored::Bf16(_)), "not widened: half the memory");
    let rows: Vec<f32> = stored.to_f32().chunks(2).map(|row| row[0] / 2.0).collect();
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(stored.to_f32(), weights.read_f32(weights.names()[0]).unwrap());
}

#[test]
fn gguf_not_gguf_and_other_versions() {
    gguf_says(b"".to_vec(), &["not a GGUF file"]);
    gguf_says(b"GGML....".to_vec(), &["not a GGUF file"]);
    gguf_says(Gguf::default().counts(1, 0, 0), &["version 1", "2 or 3"]);
    gguf_says(Gguf::default().counts(9, 0, 0), &["version 9"]);
    gguf_says(Gguf::default().counts(3u32.swap_bytes(), 0, 0), &["big-endian"]);
}

#[test]
fn gguf_cut_short_anywhere() {
    let whole = Gguf::llama()
        .meta(
            "a.array",
            9,
            &[&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("x"), &string("y")].concat(),
        )
        .tensor("blk.0.attn_q.weight", &[2, 4], 0, 0)
        .data(&[0; 32])
        .bytes();
    let place = Place::new();
    GgufFile::open(place.file("m.gguf", &whole)).unwrap();
    for len in 0..whole.len() {
        let text = GgufFile::open(place.file("m.gguf", &whole[..len])).unwrap_err().to_string();
        assert!(text.contains("cut short") || text.contains("not a GGUF"), "{len}: {text}");
    }
}

/// Bytes of real little files changed: an error or another model, never a panic.
#[test]
fn gguf_with_a_byte_changed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf");
    let place = Place::new();
    for name in ["llama.gguf", "gptneox.gguf"] {
        let whole = std::fs::read(folder.join(name)).unwrap();
        // Every byte in three ways has been run (it takes a minute); this is every seventh.
        for at in (0..3000).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
            let Ok(source) = ModelSource::open(place.file("m.gguf", &bytes)) else { continue };
            let _ = source.tokenizer();
            for tensor in source.weights.names() {
                let _ = source.weights.read_f32(tensor);
            }
        }
    }
}

#[test]
fn gguf_counts_over_the_limits() {
    let none = Gguf::default();
    gguf_says(none.counts(3, MAX_TENSORS + 1, 0), &["number of tensors", "limit"]);
    gguf_says(none.counts(3, 0, MAX_METADATA + 1), &["number of metadata entries", "limit"]);
    gguf_says(
        Gguf::default().meta("s", 8, &(MAX_STRING_BYTES + 1).to_le_bytes()).bytes(),
        &["length of the s", "limit"],
    );
    gguf_says(Gguf::default().meta("s", 8, &(u64::MAX).to_le_bytes()).bytes(), &["limit"]);
    let array = |kind: u32, len: u64| [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat();
    gguf_says(Gguf::default().meta("a", 9, &array(0, MAX_ARRAY_ITEMS + 1)).bytes(), &["array `a`", "limit"]);
    gguf_says(
        Gguf::default().meta("a", 9, &array(10, MAX_ARRAY_ITEMS)).bytes(),
        &["array `a`", "rest of the file"],
    );
    let nested: Vec<u8> = (0..64).flat_map(|_| array(9, 1)).collect();
    gguf_says(Gguf::default().meta("a", 9, &nested).bytes(), &["nests arrays deeper"]);
    gguf_says(Gguf::default().tensor("t", &[1; 5], 0, 0).bytes(), &["`t`", "5 dimensions"]);
}

#[test]
fn gguf_values_that_make_no_sense() {
    gguf_says(Gguf::default().meta("k", 13, &[]).bytes(), &["`k`", "type 13"]);
    gguf_says(Gguf::default().meta("k", 7, &[2]).bytes(), &["`k`", "boolean with value 2"]);
    gguf_says(Gguf::llama().meta("general.architecture", 8, &string("x")).bytes(), &["appears twice"]);
    for alignment in [0, 3, 2 * MAX_ALIGNMENT as u32] {
        let file = Gguf::default().meta("general.alignment", 4, &alignment.to_le_bytes());
        gguf_says(file.bytes(), &["general.alignment", "power of two"]);
    }
}

#[test]
fn gguf_tensors_that_do_not_fit() {
    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        Gguf::llama().tensor("t", dims, kind, offset).data(&[0; 64]).bytes()
    };
    gguf_says(tensor(&[32], 0, 0), &["`t`", "cut short"]);
    gguf_says(tensor(&[8], 0, 64), &["`t`", "cut short"]);
    gguf_says(tensor(&[8], 0, u64::MAX - 31), &["`t`"]);
    gguf_says(tensor(&[8], 0, 16), &["`t`", "multiple of 32"]);
    gguf_says(tensor(&[u64::MAX, 3], 0, 0), &["`t`", "larger than memory"]);
    gguf_says(tensor(&[1 << 32, 1 << 32], 0, 0), &["`t`", "larger than memory"]);
    gguf_says(tensor(&[0, 4], 0, 0), &["`t`", "length 0"]);
    gguf_says(tensor(&[33], 2, 0), &["`t`", "rows of 33", "Q4_0"]);
    gguf_says(tensor(&[256], 16, 0), &["`t`", "IQ2_XXS", "supported", "Q6_K"]);
    gguf_says(tensor(&[256], 4, 0), &["number 4", "supported"]);
    let twice = Gguf::llama().tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(&[0; 64]);
    gguf_says(twice.bytes(), &["`t` appears twice"]);
}

#[test]
fn gguf_models_that_are_not_ours() {
    let place = Place::new();
    let open = |file: Gguf| ModelSource::open(place.file("m.gguf", file.bytes()));
    says(open(Gguf::default()), &["general.architecture"]);
    says(
        open(Gguf::default().meta("general.architecture", 4, &[0; 4])),
        &["general.architecture", "a string"],
    );
    says(
        open(Gguf::default().meta("general.architecture", 8, &string("mamba"))),
        &["`mamba`", "supported", "qwen3", "gptneox"],
    );
    says(
        open(Gguf::default().meta("general.architecture", 8, &string("llama"))),
        &["llama.embedding_length"],
    );
    let weights = |file: Gguf| Weights::open(place.file("m.gguf", file.bytes()));
    let experts = Gguf::llama().tensor("blk.0.ffn_gate_exps.weight", &[8], 0, 0).data(&[0; 32]);
    says(weights(experts), &["ffn_gate_exps", "mixture of experts"]);
    let heads = Gguf::llama().tensor("blk.0.attn_q.weight", &[2, 3], 0, 0).data(&[0; 32]);
    says(weights(heads), &["attn_q", "3 rows", "heads"]);
}

#[test]
fn gguf_with_nan() {
    let place = Place::new();
    let floats: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect();
    let file = Gguf::llama().tensor("output_norm.weight", &[2], 0, 0).data(&floats).bytes();
    let weights = Weights::open(place.file("m.gguf", file)).unwrap();
    says(weights.read_f32("model.norm.weight"), &["m.gguf", "`model.norm.weight`", "NaN", "position 1"]);
}

#[test]
fn gguf_vocabularies_that_are_malformed() {
    let place = Place::new();
    let open = |file: Gguf| Tokenizer::open(place.file("m.gguf", file.bytes()));
    let strings = |items: &[&str]| {
        let body: Vec<u8> = items.iter().flat_map(|s| string(s)).collect();
        [&8u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &body].concat()
    };
    let with = |model: &str| Gguf::llama().meta("tokenizer.ggml.model", 8, &string(model));
    let tokens = |file: Gguf| file.meta("tokenizer.ggml.tokens", 9, &strings(&["a", "b", "ab"]));
    says(open(Gguf::llama()), &["no tokenizer"]);
    says(open(with("gpt2")), &["tokenizer.ggml.tokens"]);
    says(open(tokens(with("rwkv"))), &["`rwkv`", "supported", "SentencePiece"]);
    says(open(tokens(with("gpt2"))), &["tokenizer.ggml.merges"]);
    says(open(tokens(with("llama"))), &["tokenizer.ggml.scores"]);
    let pre = tokens(with("gpt2")).meta("tokenizer.ggml.pre", 8, &string("klingon"));
    says(open(pre), &["`klingon`", "llama-bpe"]);
    let eos = tokens(with("gpt2")).meta("tokenizer.ggml.eos_token_id", 4, &9u32.to_le_bytes());
    says(open(eos), &["eos_token_id", "9", "3 tokens"]);
    let merges = tokens(with("gpt2")).meta("tokenizer.ggml.merges", 9, &strings(&["a z"]));
    says(open(merges), &["tokenizers"]);
    let types = [&5u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[1, 0, 0, 0]].concat();
    says(
        open(tokens(with("gpt2")).meta("tokenizer.ggml.token_type", 9, &types)),
        &["token_type", "1 entries for 3"],
    );
}

// ---- safetensors -----------------------------------------------------------------------------------

fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn one(dtype: &str, shape: &[usize], start: usize, end: usize) -> Value {
    json!({"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}})
}

#[track_caller]
fn safetensors_says(bytes: Vec<u8>, parts: &[&str]) {
    let place = Place::new();
    says(Weights::open(place.file("model.safetensors", bytes)), &[&["model.safetensors"], parts].concat());
}

#[test]
fn safetensors_cut_short_anywhere() {
    let whole = safetensors(&one("F32", &[2, 2], 0, 16), &[0; 16]);
    let place = Place::new();
    Weights::open(place.file("model.safetensors", &whole)).unwrap();
    for len in 0..whole.len() {
        says(
            Weights::open(place.file("model.safetensors", &whole[..len])),
            &["model.safetensors", "cut short"],
        );
    }
}

#[test]
fn safetensors_headers_that_lie() {
    safetensors_says(u64::MAX.to_le_bytes().to_vec(), &["header"]);
    safetensors_says([&9u64.to_le_bytes()[..], b"not json!"].concat(), &["malformed"]);
    safetensors_says(safetensors(&one("F32", &[2, 2], 0, 12), &[0; 12]), &["malformed"]);
    safetensors_says(safetensors(&one("F32", &[usize::MAX, 9], 0, 16), &[0; 16]), &["malformed"]);
    safetensors_says(safetensors(&one("F32", &[4], 16, 0), &[0; 16]), &["malformed"]);
    safetensors_says(safetensors(&one("F99", &[4], 0, 16), &[0; 16]), &["malformed"]);
    safetensors_says(safetensors(&one("F32", &[4], 0, 16), &[0; 20]), &["length"]);
    safetensors_says(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(),
        &["git lfs pull"],
    );
}

#[test]
fn safetensors_types_and_values() {
    let place = Place::new();
    let open = |dtype: &str, bytes: &[u8], n: usize| {
        Weights::open(place.file("model.safetensors", safetensors(&one(dtype, &[n], 0, bytes.len()), bytes)))
            .unwrap()
    };
    says(open("I32", &[0; 8], 2).read_f32("w"), &["`w`", "I32", "supported: F32, F16, BF16"]);
    says(open("F16", &[0, 0, 0, 0x7c], 2).read_f32("w"), &["`w`", "inf", "position 1 of 2"]);
    says(open("BF16", &[0xc0, 0x7f], 1).read_f32("w"), &["`w`", "NaN"]);
    says(open("F32", &[0; 4], 1).read_f32("v"), &["no tensor `v`"]);
    assert_eq!(open("F16", &[0, 0x3c], 1).read_f32("w").unwrap(), [1.0]);
    assert_eq!(open("F64", &1.5f64.to_le_bytes(), 1).read_f32("w").unwrap(), [1.5]);
}

#[test]
fn shards() {
    let place = Place::new();
    let shard = |name: &str, tensor: &str| {
        let header = json!({tensor: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
        place.file(name, safetensors(&header, &2f32.to_le_bytes()));
    };
    let index = |value: Value| {
        place.file("model.safetensors.index.json", json!({"weight_map": value}).to_string());
        Weights::open(place.path())
    };
    shard("s1.safetensors", "a");
    shard("s2.safetensors", "b");
    let weights = index(json!({"a": "s1.safetensors", "b": "s2.safetensors"})).unwrap();
    assert_eq!((weights.names(), weights.read_f32("b").unwrap()), (vec!["a", "b"], vec![2.0]));
    assert_eq!(weights.path_of("b"), Some(&*place.path().join("s2.safetensors")));
    says(index(json!({"a": "s3.safetensors"})), &["s3.safetensors", "missing"]);
    says(index(json!({"a": "s2.safetensors"})), &["`a` should be in `s2.safetensors`"]);
    says(index(json!({"a": "../s1.safetensors"})), &["beside the index"]);
    says(index(json!({"a": "/etc/passwd"})), &["beside the index"]);
    says(index(json!({"a": 1})), &["weight_map"]);
    says(index(json!({})), &["no `weight_map`"]);
    shard("s2.safetensors", "a");
    says(index(json!({"a": "s1.safetensors", "b": "s2.safetensors"})), &["`a` is also in"]);
    place.file("model.safetensors.index.json", "{");
    says(Weights::open(place.path()), &["index.json", "not JSON"]);
}

#[test]
fn pickles_are_never_opened() {
    for name in ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"] {
        let place = Place::new();
        let file = place.file(name, b"\x80\x02}q\x00.");
        place.file("config.json", r#"{"model_type": "llama"}"#);
        for path in [file.as_path(), place.path()] {
            says(ModelSource::open(path), &[name, "pickle", "save_pretrained"]);
        }
    }
}

#[test]
fn directories_that_are_no_models() {
    let place = Place::new();
    says(ModelSource::open(place.path().join("none")), &["no such file"]);
    says(ModelSource::open(place.path()), &["no weights here", "model.safetensors"]);
    place.file("config.json", "{");
    says(ModelSource::open(place.path()), &["config.json", "not JSON"]);
    place.file("config.json", "{}");
    says(ModelSource::open(place.path()), &["no `model_type`"]);
    place.file("config.json", r#"{"model_type": "gemma3"}"#);
    says(
        ModelSource::open(place.path()),
        &["`gemma3`", "supported: llama, mistral, qwen2, qwen3, gpt2, gpt_neox"],
    );
    place.file("config.json", r#"{"model_type": "llama"}"#);
    place.file("model.safetensors", safetensors(&one("F32", &[1], 0, 4), &[0; 4]));
    let source = ModelSource::open(place.path()).unwrap();
    says(source.tokenizer(), &["no tokenizer.json"]);
    says(ModelSource::open(place.path().join("model.safetensors")), &["config.json"]);
    place.file("tokenizer.json", "{}");
    says(source.tokenizer(), &["tokenizer.json", "not a tokenizer"]);
    let two = Place::new();
    two.file("a.gguf", "");
    two.file("b.gguf", "");
    says(ModelSource::open(two.path()), &["2 .gguf files"]);
}

// ---- writing ---------------------------------------------------------------------------------------

#[test]
fn what_is_written_is_read_again() {
    let place = Place::new();
    let path = place.path().join("model.safetensors");
    let values = [0.5f32, -1.25, 3.0e-3, 65504.0, 1.0, 2.0];
    for (dtype, tolerance) in [(SaveDtype::F32, 0.0), (SaveDtype::F16, 5e-4), (SaveDtype::BF16, 4e-3)] {
        write_safetensors(&path, &[("b", &[2, 3], &values), ("a", &[1], &values[..1])], dtype).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.shape("b"), Some(&[2, 3][..]));
        for (found, wanted) in weights.read_f32("b").unwrap().iter().zip(values) {
            assert!(
                (found - wanted).abs() <= tolerance * wanted.abs(),
                "{dtype:?}: {found} and not {wanted}"
            );
        }
        assert_eq!(weights.read_f32("a").unwrap(), [0.5]);
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let place = Place::new();
    let path = place.path().join("model.safetensors");
    says(write_safetensors(&path, &[("w", &[1], &[f32::NAN])], SaveDtype::F32), &["`w`", "NaN"]);
    says(write_safetensors(&path, &[("w", &[1], &[1e6])], SaveDtype::F16), &["`w`", "1000000", "float16"]);
    says(write_safetensors(&path, &[("w", &[2], &[1.0])], SaveDtype::F32), &["`w`", "shape [2]"]);
    let twice: [(&str, &[usize], &[f32]); 2] = [("w", &[1], &[1.0]), ("w", &[1], &[1.0])];
    says(write_safetensors(&path, &twice, SaveDtype::F32), &["`w`", "twice"]);
    says(write_safetensors(path.join("deeper"), &[("w", &[1], &[1.0])], SaveDtype::F32), &["deeper"]);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
