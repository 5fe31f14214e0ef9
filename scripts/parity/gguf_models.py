"""Tiny GGUF checkpoints, one per architecture, for crates/seakeep/tests/gguf_models.rs.

    python scripts/parity/gguf_models.py crates/seakeep/tests/data/gguf

Each holds a Hugging Face state dict whose values follow from name and position (see `value`), put
through what llama.cpp's convert_hf_to_gguf.py does to names and layouts. Reading it back must give
the state dict. Where transformers reads the architecture from GGUF too, its result is checked here.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)


def value(name: str, shape) -> np.ndarray:
    """Element i of tensor `name` is ((h + 7 i) mod 1009) / 1009, h the sum of name[j] (j + 1)."""
    h = sum(byte * (j + 1) for j, byte in enumerate(name.encode()))
    n = int(np.prod(shape))
    return (((h + 7 * np.arange(n, dtype=np.int64)) % 1009) / np.float64(1009)).astype(np.float32).reshape(shape)


def permute(w, heads):  # LlamaModel.permute
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def split_neox(w, heads):  # GPTNeoXModel.modify_tensors
    w = w.reshape(heads, 3, -1, *w.shape[1:])
    return np.concatenate([w[:, i].reshape(-1, *w.shape[3:]) for i in range(3)])


VOCAB, HIDDEN, LAYERS, CONTEXT = 24, 16, 2, 64
common = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
decoder = dict(
    hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, head_dim=4, **common,
)
CONFIGS = {
    "llama": transformers.LlamaConfig(**decoder),
    "qwen2": transformers.Qwen2Config(**{**decoder, "tie_word_embeddings": True}),
    "qwen3": transformers.Qwen3Config(**{**decoder, "head_dim": 8}),
    "gpt2": transformers.GPT2Config(n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=CONTEXT, **common),
    "gptneox": transformers.GPTNeoXConfig(
        hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2,
        max_position_embeddings=CONTEXT, rotary_pct=0.25, **common,
    ),
}
ARCHS = {
    "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gpt2": gguf.MODEL_ARCH.GPT2, "gptneox": gguf.MODEL_ARCH.GPTNEOX,
}

for arch, config in CONFIGS.items():
    model = transformers.AutoModelForCausalLM.from_config(config)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    if arch == "gptneox":  # in memory `lm_head`, in every file `embed_out`
        shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    state = {name: value(name, shape) for name, shape in shapes.items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    path = out / f"{arch}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny {arch}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(config.num_attention_heads)
    if arch in ("llama", "qwen2", "qwen3"):
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(10000.0)
        if arch == "llama":
            writer.add_rope_dimension_count(4)
        if arch == "qwen3":
            writer.add_key_length(8)
            writer.add_value_length(8)
    else:
        writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * HIDDEN))
        writer.add_layer_norm_eps(1e-5)
        if arch == "gptneox":
            writer.add_rope_dimension_count(int(config.rope_parameters["partial_rotary_factor"] * 8))
            writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    # transformers gives Qwen2 a class of its own, which wants this first token.
    tokens = ["<|endoftext|>", "<b>", "<e>", "h", "e", "he", *"lowrdabcitnms.,Ġ"]
    tokens += [f"unused{i}" for i in range(VOCAB - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (VOCAB - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)

    names = gguf.get_tensor_name_map(ARCHS[arch], LAYERS)
    for name, w in state.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if arch == "llama" and ".q_proj." in name:
            w = permute(w, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            w = permute(w, config.num_key_value_heads)
        if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            w = w.T
        if arch == "gptneox" and ".query_key_value." in name:
            w = split_neox(w, config.num_attention_heads)
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped, name
        writer.add_tensor(mapped, np.ascontiguousarray(w))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    if arch != "gptneox":  # transformers does not read this one from GGUF
        read = transformers.AutoModelForCausalLM.from_pretrained(out, gguf_file=path.name, config=config, dtype=torch.float32)
        loaded = read.state_dict()
        for name, w in state.items():
            if name in loaded:
                assert np.array_equal(loaded[name].numpy(), w), (arch, name)
    print(arch, path.stat().st_size)


def llama3_divisors(factor, dim, base=500000.0, low=1.0, high=4.0, context=8192):  # LlamaModel.generate_extra_tensors
    divisors = []
    for frequency in 1.0 / (base ** (np.arange(0, dim, 2) / dim)):
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            divisors.append(1)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


# A header with Llama 3's rope divisors (and one with others), and a SentencePiece vocabulary.
pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
words = ["\u2581", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "hell", "hello", "\u2581hello", "\u2581w", "or", "ld", "\u2581wor", "\u2581world", "lo", "\u2581\u2581", "hel"]
scores = [0.0] * 259 + [-float(i) for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 11, 10, 13, 14, 15, 16, 17, 9, 19, 20)]
for stem, divisors in [("llama3", llama3_divisors(8.0, 64)), ("longrope", np.linspace(1, 4, 32, dtype=np.float32))]:
    writer = gguf.GGUFWriter(out / f"{stem}.gguf", "llama")
    writer.add_context_length(131072)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(64)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces + words)
    writer.add_token_scores(scores)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_tensor("rope_freqs.weight", divisors)
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

tokenizer = transformers.AutoTokenizer.from_pretrained(out, gguf_file="llama3.gguf")
texts = ["hello world", "hello  hello", "helloworld hell", "caf\u00e9 \u65e5", "lolo", ""]
golden = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts]
(out / "llama3.json").write_text(json.dumps(golden, indent=1) + "\n")
