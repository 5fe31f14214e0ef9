"""The other side of the comparison, run by `against_trl.py` in its virtual environment:

    python rivals.py COMMAND '{"folder": ..., "scratch": ..., "threads": 2, ...}'

Each command prints one line of JSON. Times leave out imports and the loading of models.
"""

import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))

BETA = 0.1
LEARNING_RATE = 1e-6


# ---------------------------------------------------------------------------------------------
# Inputs that both sides share
# ---------------------------------------------------------------------------------------------


def prepare(folder, gguf, data, pairs, prompts, lengths, max_length, **_):
    """SmolLM2 as float32 safetensors (`base`), the first HH pairs that TRL keeps, chat prompts, and texts of chosen lengths.

    What is there already is not made again. Gives the tokens [prompt, chosen, rejected] of every pair, by TRL's own code.
    """
    import smollm2_data as source

    folder = Path(folder)
    tokenizer = source.load_tokenizer(Path(data))
    source.ensure_base(Path(gguf), tokenizer, folder)
    rows = [row for row in map(source.conversational, source.read_hh(Path(data))) if row]
    kept = source.trl_tokens(rows[: 2 * pairs], tokenizer, max_length)[:pairs]
    kept_rows = [rows[tokens["row"]] for tokens in kept]
    source.write_rows(folder / "pairs.jsonl", kept_rows)
    # First turns: short, so that a batch of them is hardly padded.
    source.write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"][:1]} for row in rows[:prompts]])
    counts = {"pairs": list(map(tokens_of, kept))}
    words = " ".join(message["content"] for row in rows[:400] for message in row["prompt"]).split()
    for length, count in lengths:
        made = [long_pair(words, length, number) for number in range(count)]
        source.write_rows(folder / f"length-{length}.jsonl", made)
        counts[f"length-{length}"] = list(map(tokens_of, source.trl_tokens(made, tokenizer, length)))
    return counts


def tokens_of(tokens):
    """[prompt, chosen, rejected] in tokens."""
    return [len(tokens[part]) for part in ("prompt", "chosen", "rejected")]


def long_pair(words, length, number):
    """A pair whose prompt fills about half of `length` tokens, and whose completions are cut at it."""
    text = lambda start, count: " ".join(words[(start + i) % len(words)] for i in range(count))
    start = 1000 * number
    message = lambda role, content: [{"role": role, "content": content}]
    return {
        # A word has some 1.3 tokens; the template adds a few, SmolLM2's system message some 20.
        "prompt": message("user", text(start, max(8, length * 3 // 8 - 20))),
        "chosen": message("assistant", text(start + 301, length)),
        "rejected": message("assistant", text(start + 702, length)),
    }


def first_pairs(folder, count):
    """The first rows of `pairs.jsonl`."""
    lines = (Path(folder) / "pairs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:count]]


# ---------------------------------------------------------------------------------------------
# TRL
# ---------------------------------------------------------------------------------------------


def trl(folder, scratch, steps, batch, max_length, dtype="float32", precompute=False, **_):
    """DPOTrainer on the first `steps` batches in the file's order.

    With bfloat16 the weights are too, and products run under autocast, which is TRL's fastest.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    times, reference = [], []

    class Clock(TrainerCallback):
        """Takes the time of every step."""

        def on_step_begin(self, *_, **__):
            times.append(-time.monotonic())

        def on_step_end(self, *_, **__):
            times[-1] += time.monotonic()

    class Timed(DPOTrainer):
        """Takes the time of the reference's pass, where there is one before training."""

        def _precompute_ref_logps(self, *arguments, **named):
            begun = time.monotonic()
            made = super()._precompute_ref_logps(*arguments, **named)
            reference.append(time.monotonic() - begun)
            return made

    base = Path(folder) / "base"
    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    config = DPOConfig(
        output_dir=scratch,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        max_steps=steps,
        max_length=max_length,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        optim="adamw_torch",
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        precompute_ref_log_probs=precompute,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Timed(
        model=load(),
        ref_model=load(),
        args=config,
        train_dataset=Dataset.from_list(first_pairs(folder, steps * batch)),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[Clock()],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "reference_seconds": sum(reference),
        "train_seconds": sum(times),
        "step_seconds": times,
        "num_tokens": logged[-1].get("num_tokens"),
        "losses": [entry["loss"] for entry in logged],
    }


# ---------------------------------------------------------------------------------------------
# WDPO by double backward
# ---------------------------------------------------------------------------------------------


def wdpo(folder, steps, batch, max_length, rho, as_trl=False, **_):
    """Steps of WDPO (paper's form, prompt shared) as PyTorch can do it: eager attention, since fused attention has no second
    derivative; a pair at a time and nothing padded, since a batch of four does not fit; logits of predicting rows only. With `as_trl` each
    pair is laid out as DPOTrainer lays it out, and every position projected.

    The first pass' parameter gradients come out of the same call as the input gradients, so that the products are those that
    Seakeep makes too: 1 forward, 2 backward, and the backward of both.
    """
    import smollm2_data as source
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = Path(folder) / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = first_pairs(folder, steps * batch)
    pairs = source.trl_tokens(rows, tokenizer, max_length)
    with torch.no_grad():
        references = [margin_unpadded(model, pair)[0] for pair in pairs]
    margin = margin_as_trl if as_trl else margin_unpadded
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    times, losses = [], []
    for step in range(steps):
        begun = time.monotonic()
        total, penalty = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        loss = mean_square = 0.0
        for pair, reference in list(zip(pairs, references))[step * batch : (step + 1) * batch]:
            h, inputs = margin(model, pair)
            l = -torch.nn.functional.logsigmoid(BETA * (h - reference)) / batch
            grads = torch.autograd.grad(l, [*inputs, *parameters], create_graph=True)
            # `l` is divided by the batch, the norm is of a pair's own loss.
            g = sum((batch * v).pow(2).sum() for v in grads[: len(inputs)]) / batch
            second = torch.autograd.grad(g, parameters, materialize_grads=True)
            for into, found in ((total, grads[len(inputs) :]), (penalty, second)):
                torch._foreach_add_(into, [tensor.detach() for tensor in found])
            loss, mean_square = loss + l.item(), mean_square + g.item()
        torch._foreach_add_(total, penalty, alpha=rho / (2 * mean_square**0.5))
        for parameter, gradient in zip(parameters, total):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        times.append(time.monotonic() - begun)
        losses.append(loss + rho * mean_square**0.5)
    return {"train_seconds": sum(times), "step_seconds": times, "losses": losses}


def margin_unpadded(model, pair):
    """(log-prob of chosen minus rejected, the input embeddings of prompt, chosen and rejected)."""
    import common

    prompt, chosen, rejected = (common.embed(model, pair[part]) for part in ("prompt", "chosen", "rejected"))

    def logp(completion, ids):
        logits = common.completion_logits(model, torch.cat([prompt, completion]), len(ids))
        return common.token_logps(logits, ids).sum()

    h = logp(chosen, pair["chosen"]) - logp(rejected, pair["rejected"])
    return h, (prompt, chosen, rejected)


def margin_as_trl(model, pair):
    """The same from one batch of two texts, each with its prompt, padded to the longer; logits of every position."""
    import common

    prompt, chosen, rejected = inputs = [common.embed(model, pair[part]) for part in ("prompt", "chosen", "rejected")]
    longest = len(prompt) + max(len(chosen), len(rejected))
    texts, mask, targets = [], torch.zeros(2, longest, dtype=torch.long), torch.full((2, longest), -1)
    for i, (completion, part) in enumerate([(chosen, "chosen"), (rejected, "rejected")]):
        length = len(prompt) + len(completion)
        texts.append(torch.cat([prompt, completion, prompt.new_zeros(longest - length, prompt.shape[1])]))
        mask[i, :length] = 1
        targets[i, len(prompt) : length] = torch.as_tensor(pair[part])
    logits = model(inputs_embeds=torch.stack(texts), attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = targets[:, 1:]
    logps = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    logps = torch.where(targets >= 0, logps, 0.0).sum(1)
    return logps[0] - logps[1], inputs


# ---------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------


def generate(folder, prompts, new_tokens, **_):
    """transformers' `generate`, all prompts in one batch, greedy, exactly `new_tokens` each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = Path(folder) / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    lines = (Path(folder) / "prompts.jsonl").read_text().splitlines()[:prompts]
    batch = tokenizer.apply_chat_template(
        [json.loads(line)["prompt"] for line in lines],
        add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
    )
    begun = time.monotonic()
    out = model.generate(**batch, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    seconds = time.monotonic() - begun
    made = out[:, batch["input_ids"].shape[1] :]
    return {"seconds": seconds, "new_tokens": made.numel(), "tokens": made.tolist()}


# ---------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------

PRODUCTS = ((1024, 1536, 576), (1024, 576, 1536), (1536, 576, 1024), (2048, 2048, 2048))
"""(m, n, k), those of `seakeep inspect machine`."""


def products(seconds, **_):
    """The best of torch.mm over some shapes, in f32 and bf16, GFLOP/s."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        rates = [product_rate(shape, dtype, seconds) for shape in PRODUCTS]
        best[str(dtype).removeprefix("torch.")] = max(rates)
    return best


def product_rate(shape, dtype, seconds):
    """GFLOP/s of the fastest of the products that fit into `seconds`."""
    m, n, k = shape
    a, b, c = torch.rand(m, k).to(dtype), torch.rand(k, n).to(dtype), torch.empty(m, n, dtype=dtype)
    torch.mm(a, b, out=c)
    fastest, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end or fastest == float("inf"):
        begun = time.monotonic()
        torch.mm(a, b, out=c)
        fastest = min(fastest, time.monotonic() - begun)
    return 2 * m * n * k / fastest / 1e9


# ---------------------------------------------------------------------------------------------
# Large models with random weights
# ---------------------------------------------------------------------------------------------

SHAPES = {
    "llama-3.2-1b": dict(layers=16, hidden=2048, heads=32, kv=8, head=64, intermediate=8192, vocab=128_256, tied=True),
    "llama-3.1-8b": dict(layers=32, hidden=4096, heads=32, kv=8, head=128, intermediate=14_336, vocab=128_256, tied=False),
}


def random_gguf(folder, gguf, shape, kind, **_):
    """`SHAPE-KIND.gguf`: random weights of a model's shape in BF16 or Q4_0, with SmolLM2's tokenizer and template.

    Written tensor by tensor: neither side ever holds the model in float32.
    """
    import gguf as library
    import numpy as np

    target = Path(folder) / f"{shape}-{kind.lower()}.gguf"
    if target.exists():
        return {"path": str(target), "bytes": target.stat().st_size}
    sizes = SHAPES[shape]
    rng = np.random.default_rng(1)
    partial = target.with_suffix(".partial")
    writer = library.GGUFWriter(partial, "llama")
    writer.add_block_count(sizes["layers"])
    writer.add_context_length(8192)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["intermediate"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv"])
    writer.add_rope_dimension_count(sizes["head"])
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(sizes["vocab"])
    copy_tokenizer(library, Path(gguf), writer, sizes["vocab"])
    types = library.GGMLQuantizationType
    tensors = list(tensors_of(sizes))
    for name, dims in tensors:
        dtype = types.F32 if len(dims) == 1 else types[kind]
        packed = packed_shape(dims, dtype, types)
        numpy_type = np.float32 if dtype == types.F32 else np.uint8
        writer.add_tensor_info(name, packed, np.dtype(numpy_type), int(np.prod(packed)) * np.dtype(numpy_type).itemsize, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims in tensors:
        dtype = types.F32 if len(dims) == 1 else types[kind]
        writer.write_tensor_data(random_tensor(np, rng, dims, dtype, types))
    writer.close()
    partial.rename(target)
    return {"path": str(target), "bytes": target.stat().st_size}


def copy_tokenizer(library, source, writer, vocab):
    """The tokenizer's fields, its vocabulary filled up with tokens that no text has."""
    for name, field in library.GGUFReader(source).fields.items():
        if not name.startswith("tokenizer."):
            continue
        value, kinds = field.contents(), field.types
        if name == "tokenizer.ggml.tokens":
            value = value + [f"<|unused-{i}|>" for i in range(vocab - len(value))]
        elif name in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
            # Type 5: never used.
            value = value + [type(value[0])(5)] * (vocab - len(value))
        writer.add_key_value(name, value, kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None)


def tensors_of(sizes):
    """(name, shape) of every tensor, in GGUF's names."""
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    queries, keys = sizes["heads"] * sizes["head"], sizes["kv"] * sizes["head"]
    yield "token_embd.weight", (sizes["vocab"], hidden)
    for layer in range(sizes["layers"]):
        of = lambda name: f"blk.{layer}.{name}.weight"
        yield of("attn_norm"), (hidden,)
        yield of("ffn_norm"), (hidden,)
        yield of("attn_q"), (queries, hidden)
        yield of("attn_k"), (keys, hidden)
        yield of("attn_v"), (keys, hidden)
        yield of("attn_output"), (hidden, queries)
        yield of("ffn_gate"), (inner, hidden)
        yield of("ffn_up"), (inner, hidden)
        yield of("ffn_down"), (hidden, inner)
    yield "output_norm.weight", (hidden,)
    if not sizes["tied"]:
        yield "output.weight", (sizes["vocab"], hidden)


BLOCK, BLOCK_BYTES = 32, 18
"""Values and bytes of a block of Q4_0: a float16 scale and 16 bytes of nibbles."""


def packed_shape(dims, dtype, types):
    """The shape in bytes, or in values where those are stored as they are."""
    if dtype == types.F32:
        return list(dims)
    row = dims[-1] * 2 if dtype == types.BF16 else dims[-1] // BLOCK * BLOCK_BYTES
    return [*dims[:-1], row]


def random_tensor(np, rng, dims, dtype, types):
    """Gains of 1, weights of standard deviation 0.02."""
    if dtype == types.F32:
        return np.ones(dims, np.float32)
    if dtype == types.BF16:
        values = rng.standard_normal(dims, np.float32) * np.float32(0.02)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    blocks = rng.integers(0, 256, (*dims[:-1], dims[-1] // BLOCK, BLOCK_BYTES), np.uint8)
    # Nibbles minus 8 have a standard deviation of 4.6.
    blocks[..., :2] = np.frombuffer(np.float16(0.02 / 4.6).tobytes(), np.uint8)
    return blocks.reshape(*dims[:-1], -1)


COMMANDS = {made.__name__: made for made in (prepare, trl, wdpo, generate, products, random_gguf)}


def main():
    """Runs a command and prints what it gives."""
    command, settings = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    print(json.dumps(COMMANDS[command](**settings)))


if __name__ == "__main__":
    main()
