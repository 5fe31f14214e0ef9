"""Golden values from tiny random transformers models, for the gradient tests of every family.

    python scripts/parity/golden.py [case ...] [--check]

writes crates/seakeep/tests/golden/<case>/: config.json, model.safetensors (f32), golden.json and
golden.safetensors. README.md there describes the fields. Everything is computed in float64 on
the f32-rounded weights; the Wasserstein penalty by double backward. `--check` also compares every
gradient with finite differences and the log-probabilities with unmodified transformers.
"""

import argparse
import copy
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

import common

OUT = Path(__file__).resolve().parents[2] / "crates/seakeep/tests/golden"

BETA = 0.5
TAU = 0.5
RHO = 0.1
FULL_GRADIENTS = ("dpo", "kldpo_tau", "wdpo_shared")
PROMPT_LENGTHS = (5, 3, 6)
CHOSEN_LENGTHS = (4, 7, 2)
REJECTED_LENGTHS = (6, 3, 5)
GENERATED = 12

SMALL = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
NEOX = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=0,
    rotary_pct=0.25,
)
# Wavelengths of head_dim 8 at theta 100: 6.3, 20, 63, 199 positions. With an original context of
# 32 the first is kept (below 32/4), the second blended, the others stretched by the factor.
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def configs():
    """One configuration a case, each with what sets its family apart."""
    return {
        "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
        "llama3": LlamaConfig(
            **SMALL,
            head_dim=8,
            tie_word_embeddings=False,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=LLAMA3_ROPE,
        ),
        "mistral": MistralConfig(**SMALL, sliding_window=5),
        "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2),
        "qwen3": Qwen3Config(**SMALL, head_dim=8, bos_token_id=1, eos_token_id=2),
        "gpt2": GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=24,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "gpt_neox": GPTNeoXConfig(**NEOX, use_parallel_residual=True),
        "gpt_neox_seq": GPTNeoXConfig(**NEOX, use_parallel_residual=False),
    }


# ---------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------


def random_model(config, seed):
    """A float32 model with every parameter random: weights at 0.3, norms near 1, biases near 0."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1.0 + 0.2 * noise if is_scale else 0.3 * noise)
    return model.eval()


def random_pairs(seed, vocab_size):
    """Three pairs of random token ids with different lengths."""
    rng = random.Random(seed)
    draw = lambda length: [rng.randrange(vocab_size) for _ in range(length)]
    lengths = zip(PROMPT_LENGTHS, CHOSEN_LENGTHS, REJECTED_LENGTHS)
    return [dict(prompt=draw(p), chosen=draw(c), rejected=draw(r)) for p, c, r in lengths]


def reference_logps(policy, seed):
    """Reference log-probs [3, 2] that put the margins at about -2.3, 1.1 and 1.9 (permuted)."""
    rng = random.Random(seed)
    margins = rng.sample([-2.3, 1.1, 1.9], 3)
    rows = []
    for (chosen, rejected), margin in zip(policy.tolist(), margins):
        u_rejected = rng.uniform(-1.5, 1.5)
        u_chosen = u_rejected + margin + rng.uniform(-0.2, 0.2)
        rows.append([round(chosen - u_chosen, 6), round(rejected - u_rejected, 6)])
    return torch.tensor(rows, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------
# Passes
# ---------------------------------------------------------------------------------------------


class Forward:
    """The forward pass of three pairs: log-probs [3, 2], the logits, and the embedding leaves.

    `leaves[i]` holds the tensors that g_i sums over: with `shared`, the prompt's embeddings stand
    once and enter both branches; otherwise each sequence has its own.
    """

    def __init__(self, model, pairs, shared):
        rows, self.leaves, self.logits, self.lengths = [], [], [], []
        for pair in pairs:
            prompt = common.embed(model, pair["prompt"])
            branches = []
            leaves = [prompt] if shared else []
            for name in ("chosen", "rejected"):
                if shared:
                    completion = common.embed(model, pair[name])
                    sequence = torch.cat([prompt, completion])
                    leaves.append(completion)
                else:
                    sequence = common.embed(model, pair["prompt"] + pair[name])
                    leaves.append(sequence)
                branches.append(common.completion_logits(model, sequence, len(pair[name])))
            self.leaves.append(leaves)
            self.logits.append(branches)
            self.lengths.append([float(len(pair[name])) for name in ("chosen", "rejected")])
            rows.append(torch.stack([
                common.token_logps(logits, pair[name]).sum()
                for logits, name in zip(branches, ("chosen", "rejected"))
            ]))
        self.logps = torch.stack(rows)

    def losses(self, reference):
        """DPO pair losses [3] against reference log-probs [3, 2]."""
        ratios = self.logps - reference
        return common.dpo_losses(ratios[:, 0] - ratios[:, 1], BETA)

    def input_gradients(self, losses):
        """g_i = ||d l_i / d e_i||^2 [3], differentiable."""
        penalties = []
        for loss, leaves in zip(losses, self.leaves):
            grads = torch.autograd.grad(loss, leaves, create_graph=True)
            penalties.append(sum(grad.pow(2).sum() for grad in grads))
        return torch.stack(penalties)


def objective(name, forward, reference):
    """The objective's loss (a scalar to differentiate) and what else to record."""
    losses = forward.losses(reference)
    if name == "dpo":
        return losses.mean(), {}
    if name.startswith("kldpo"):
        return kldpo(name, losses)
    if name in COMPOSED:
        return composed(name, forward, reference)
    penalties = forward.input_gradients(losses)
    if name == "wdpo_official":
        return (losses + RHO * penalties).mean(), {"rho": RHO, "g": penalties.detach()}
    return losses.mean() + RHO * penalties.mean().sqrt(), {"rho": RHO, "g": penalties.detach()}


def kldpo(name, losses):
    """The KL-ball objectives; weights are constants of the gradient."""
    if name == "kldpo_official":
        weights = common.kldpo_official_weights(losses, TAU)
        return (weights * losses).mean(), {"tau": TAU, "weights": weights}
    tau = TAU if name == "kldpo_tau" else common.kldpo_tau_of_rho(losses, RHO)
    weights = common.kldpo_weights(losses, tau)
    extra = {"tau": tau, "weights": weights, "effective_size": common.effective_size(weights)}
    if name == "kldpo_rho":
        extra |= {"rho": RHO, "dual": common.dual_value(losses, tau, RHO)}
    return (weights * losses).sum(), extra


def ipo_losses(forward, reference):
    """TRL's ipo: scores averaged over tokens, squared distance of the margin from 1/(2 beta)."""
    scores = (forward.logps - reference) / torch.tensor(forward.lengths, dtype=torch.float64)
    return (scores[:, 0] - scores[:, 1] - 1 / (2 * BETA)) ** 2


def bco_losses(forward, reference):
    """TRL's bco_pair: not a function of the margin, so its curvature differs between the branches."""
    chosen, rejected = (BETA * (forward.logps - reference)).unbind(1)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


COMPOSED = {
    "wdpo_kldpo": lambda forward, reference: forward.losses(reference),
    "wdpo_ipo": ipo_losses,
    "wdpo_bco": bco_losses,
}
"""WDPO's penalty with another rule (KLDPO at TAU) or another pair loss."""


def composed(name, forward, reference):
    """sum w l + RHO sqrt(sum w g), the rule's weights w constant."""
    losses = COMPOSED[name](forward, reference)
    uniform = torch.full_like(losses.detach(), 1 / len(losses))
    weights = common.kldpo_weights(losses, TAU) if name == "wdpo_kldpo" else uniform
    penalties = forward.input_gradients(losses)
    loss = (weights * losses).sum() + RHO * (weights * penalties).sum().sqrt()
    return loss, {"rho": RHO, "tau": TAU, "weights": weights}


OBJECTIVES = {
    "dpo": True,
    "kldpo_tau": True,
    "kldpo_rho": True,
    "kldpo_official": True,
    "wdpo_shared": True,
    "wdpo_separate": False,
    "wdpo_official": False,
    "wdpo_kldpo": True,
    "wdpo_ipo": True,
    "wdpo_bco": True,
}
"""Objective -> whether the prompt's embeddings are shared between the branches."""


def saved_name(name, model_type):
    """The tensor's name in model.safetensors: transformers 5 renames GPT-NeoX's head on loading."""
    return "embed_out.weight" if (model_type, name) == ("gpt_neox", "lm_head.weight") else name


def named_parameters(model):
    """The parameters by their saved names; tied ones once."""
    return {saved_name(name, model.config.model_type): p for name, p in model.named_parameters()}


def gradients(model, loss):
    """d loss / d parameter for every parameter, by its saved name."""
    parameters = named_parameters(model)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


# ---------------------------------------------------------------------------------------------
# What is recorded
# ---------------------------------------------------------------------------------------------


def branch_metrics(forward, pairs):
    """Per pair and branch (chosen, rejected): token log-probs, mean logit, entropy, top-1 hits."""
    rows = []
    for pair, branches in zip(pairs, forward.logits):
        row = {}
        for name, logits in zip(("chosen", "rejected"), branches):
            logits = logits.detach()
            log_p = logits.log_softmax(-1)
            row[name] = {
                "token_logps": common.token_logps(logits, pair[name]),
                "mean_logit": logits.mean().item(),
                "entropy": -(log_p.exp() * log_p).sum(-1).mean().item(),
                "top1": (logits.argmax(-1) == torch.tensor(pair[name])).double().mean().item(),
            }
        rows.append(row)
    return rows


def batch_metrics(pairs, metrics):
    """The batch means as TRL logs them: over completion tokens, not over pairs."""
    def token_mean(key, branches):
        weights = [(m[b][key], len(p[b])) for p, m in zip(pairs, metrics) for b in branches]
        return sum(value * count for value, count in weights) / sum(count for _, count in weights)

    return {
        "logits/chosen": token_mean("mean_logit", ["chosen"]),
        "logits/rejected": token_mean("mean_logit", ["rejected"]),
        "entropy": token_mean("entropy", ["chosen", "rejected"]),
        "mean_token_accuracy": token_mean("top1", ["chosen"]),
    }


def fingerprint(tensor):
    """[l2 norm, dot with cos(0.37 (k + 1)) over the row-major elements]."""
    flat = tensor.flatten()
    probe = torch.cos(0.37 * torch.arange(1, len(flat) + 1, dtype=torch.float64))
    return [flat.norm().item(), flat.dot(probe).item()]


def objective_record(model, name, loss, losses, extra):
    """One objective's entry in golden.json, and its gradients."""
    grads = gradients(model, loss)
    record = {
        "loss": loss.item(),
        "pair_losses": losses.detach(),
        **extra,
        "grad_norm": math.sqrt(sum(grad.pow(2).sum().item() for grad in grads.values())),
        "tensors": {tensor: fingerprint(grad) for tensor, grad in grads.items()},
    }
    return record, grads


def make_case(case, config, seed, check):
    """Generate one case directory."""
    folder = OUT / case
    folder.mkdir(parents=True, exist_ok=True)
    float32_model = random_model(config, seed)
    float32_model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = common.exact_float64(copy.deepcopy(float32_model))
    saved = load_file(folder / "model.safetensors")
    assert sorted(saved) == sorted(named_parameters(model)), "names differ from those saved"

    pairs = random_pairs(seed, config.vocab_size)
    first = Forward(model, pairs, shared=True)
    reference = reference_logps(first.logps.detach(), seed)
    metrics = branch_metrics(first, pairs)
    tokens, lead = common.greedy(model, pairs[0]["prompt"], GENERATED)
    assert lead > 1e-3, f"{case}: greedy choice within {lead} of a tie; take another seed"

    full, records = {}, {}
    for name, shared in OBJECTIVES.items():
        forward = Forward(model, pairs, shared)
        loss, extra = objective(name, forward, reference)
        records[name], grads = objective_record(model, name, loss, forward.losses(reference), extra)
        if name in FULL_GRADIENTS:
            full |= {f"{name}/{tensor}": grad.float().contiguous() for tensor, grad in grads.items()}
        # The weights of a composed rule are constant, which a difference of its loss is not.
        if check and name != "wdpo_kldpo":
            check_direction(model, pairs, reference, name, shared, grads)
            if "g" in extra:
                check_branchwise(model, pairs, reference, shared, extra["g"])
    if check:
        check_transformers(float32_model, pairs, first)

    ratios = first.logps.detach() - reference
    common.write_json(folder / "golden.json", {
        "case": case,
        "beta": BETA,
        "pairs": pairs,
        "ref_logps": {"chosen": reference[:, 0], "rejected": reference[:, 1]},
        "policy_logps": {"chosen": first.logps[:, 0], "rejected": first.logps[:, 1]},
        "margins": ratios[:, 0] - ratios[:, 1],
        "branches": metrics,
        "batch": batch_metrics(pairs, metrics),
        "generate": {"prompt": pairs[0]["prompt"], "tokens": tokens, "smallest_lead": lead},
        "objectives": records,
    })
    save_file(full, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{case:13} {count:6} parameters {size / 1000:6.1f} kB  lead {lead:.3f}", flush=True)


# ---------------------------------------------------------------------------------------------
# Checks of the generator itself
# ---------------------------------------------------------------------------------------------


def check_direction(model, pairs, reference, name, shared, grads):
    """Central finite difference of the loss along one random direction, against the gradient."""
    generator = torch.Generator().manual_seed(1)
    directions = {n: torch.randn(g.shape, generator=generator, dtype=torch.float64) for n, g in grads.items()}
    weights = kldpo_constants(model, pairs, reference, name, shared)
    values, step = [], 1e-7
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for tensor, parameter in named_parameters(moved).items():
                parameter += sign * step * directions[tensor]
        forward = Forward(moved, pairs, shared)
        if weights is None:
            values.append(objective(name, forward, reference)[0].item())
        else:
            values.append((weights * forward.losses(reference)).sum().item())
    finite = (values[0] - values[1]) / (2 * step)
    exact = sum((grads[n] * d).sum().item() for n, d in directions.items())
    assert abs(finite - exact) < 1e-6 * max(1.0, abs(exact)), (name, finite, exact)


def kldpo_constants(model, pairs, reference, name, shared):
    """The weights that the gradient holds constant, or None where it holds nothing constant.

    The exact dual (`kldpo_rho`) is differentiated as it is: the envelope theorem says that its
    derivative is the one with constant weights.
    """
    losses = Forward(model, pairs, shared).losses(reference)
    if name == "kldpo_tau":
        return common.kldpo_weights(losses, TAU)
    if name == "kldpo_official":
        return common.kldpo_official_weights(losses, TAU) / len(pairs)
    return None


def check_branchwise(model, pairs, reference, shared, penalties):
    """The penalty's gradient branch by branch (as for a real model) against double backward."""
    forward = Forward(model, pairs, shared)
    direct = gradients(model, forward.input_gradients(forward.losses(reference)).sum())
    model.zero_grad()
    ratios = forward.logps.detach() - reference
    margins = (ratios[:, 0] - ratios[:, 1]).tolist()
    for pair, margin, penalty in zip(pairs, margins, penalties.tolist()):
        g = common.accumulate_penalty_gradient(model, pair, margin, BETA, shared)
        assert abs(g - penalty) < 1e-10 * penalty, (g, penalty)
    for name, parameter in named_parameters(model).items():
        assert torch.allclose(parameter.grad, direct[name], rtol=1e-9, atol=1e-9), name
    model.zero_grad()


def check_transformers(model, pairs, forward):
    """Log-probabilities against transformers as it is, in float32."""
    for row, pair in zip(forward.logps, pairs):
        for value, name in zip(row.tolist(), ("chosen", "rejected")):
            ids, length = pair["prompt"] + pair[name], len(pair[name])
            logits = model(torch.tensor([ids])).logits[0, -length - 1 : -1]
            plain = common.token_logps(logits, pair[name]).sum().item()
            assert abs(plain - value) < 2e-6 * abs(value), (plain, value)


def main():
    """Generate the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help="cases to write (default: all)")
    parser.add_argument("--check", action="store_true", help="also check the values themselves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (case, config) in enumerate(configs().items(), start=11):
        if not arguments.cases or case in arguments.cases:
            make_case(case, config, seed, arguments.check)


if __name__ == "__main__":
    main()
