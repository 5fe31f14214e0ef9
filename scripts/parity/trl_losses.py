"""TRL's own loss code, run in float64 on given log-probabilities instead of a model.

Each trainer is made without its constructor and given only the attributes its loss reads; the model
is a function whose per-token log-probs sum to the wanted values. What runs is TRL's method, but for
its casts to float32 (the alpha divergence, ORPO's odds): its float64 twin casts to float64.
"""

import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.orpo.orpo_trainer import log1mexp

torch.set_default_dtype(torch.float64)
"""TRL builds some constants with `torch.tensor(float)`, `torch.zeros(1)` and `torch.Tensor([])`."""


def float64_twin(method):
    """`method` compiled again with its casts to float32 made casts to float64."""
    source = textwrap.dedent(inspect.getsource(method))
    source = source.replace(".float()", ".double()").replace("torch.float32: 80.0", "torch.float64: 80.0")
    made = {}
    exec(compile(source, inspect.getfile(method), "exec"), method.__globals__, made)
    return made[method.__name__]


DPO_LOSS = float64_twin(DPOTrainer._compute_loss)
KTO_LOSS = float64_twin(KTOTrainer._compute_loss)
CPO_LOSS = float64_twin(CPOTrainer.get_batch_loss_metrics)
ORPO_LOSS = float64_twin(ORPOTrainer.get_batch_loss_metrics)
ORPO_ODDS = float64_twin(ORPOTrainer.odds_ratio_loss)


# ---------------------------------------------------------------------------------------------
# Trainers without a constructor, models without weights
# ---------------------------------------------------------------------------------------------


def stub(kind, **attributes):
    """A trainer of class `kind` with what every loss reads, and `attributes`."""
    trainer = object.__new__(kind)
    same = lambda value: value
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    trainer.model = SimpleNamespace(training=False)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._total_train_tokens = 0
    trainer.aux_loss_enabled = trainer.use_weighting = trainer.is_encoder_decoder = False
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def spans(lengths, starts=None):
    """A mask [n, T]: row i is 1 from `starts[i]` (0 if none) over `lengths[i]` positions."""
    lengths = torch.tensor(lengths)
    starts = torch.zeros_like(lengths) if starts is None else torch.tensor(starts)
    positions = torch.arange(int((starts + lengths).max()))
    ends = (starts + lengths).unsqueeze(1)
    return ((positions >= starts.unsqueeze(1)) & (positions < ends)).long()


def spread(logps, mask):
    """Per-token log-probs [n, T] that are equal over a row's `mask` and sum to `logps`."""
    return (logps / mask.sum(1).clamp(min=1)).unsqueeze(1) * mask


def fused_model(logps, mask):
    """A model that answers as TRL's fused head does: `log_probs` [n, T] and figures for the logs."""
    none = torch.zeros(mask.shape)
    outputs = SimpleNamespace(log_probs=spread(logps, mask), entropy=none, mean_logits=none, is_top1=none.bool())
    return lambda **_: outputs


def completion_inputs(mask):
    """Inputs with one prompt token before the completion positions of `mask`."""
    first = torch.zeros(len(mask), 1, dtype=torch.long)
    full = torch.cat([first, mask], dim=1)
    return {"input_ids": full, "attention_mask": full, "completion_mask": full}


# ---------------------------------------------------------------------------------------------
# The losses: tensors of summed log-probs in, TRL's scalar loss out
# ---------------------------------------------------------------------------------------------


def dpo(logps, tokens, options):
    """DPOTrainer's loss. `logps`: (chosen, rejected, ref chosen, ref rejected), each [n]."""
    chosen, rejected, ref_chosen, ref_rejected = logps
    trainer = stub(
        DPOTrainer,
        precompute_ref_logps=True,
        ld_alpha=None,
        beta=options.get("beta", 0.1),
        loss_types=options["loss_types"],
        loss_weights=options.get("loss_weights", [1.0] * len(options["loss_types"])),
        label_smoothing=options.get("label_smoothing", 0.0),
        f_divergence_type=options.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=options.get("f_alpha_divergence_coef", 0.5),
        args=SimpleNamespace(discopop_tau=options.get("discopop_tau", 0.05)),
    )
    mask = spans(tokens[0] + tokens[1])
    inputs = completion_inputs(mask) | {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    return DPO_LOSS(trainer, fused_model(torch.cat([chosen, rejected]), mask), inputs, False)


def kto(logps, tokens, labels, kl, options):
    """KTOTrainer's loss. `logps`: (policy, reference), `kl`: the same of mismatched completions."""
    loss_type = options["loss_types"][0]
    trainer = stub(
        KTOTrainer,
        precompute_ref_logps=True,
        beta=options.get("beta", 0.1),
        loss_type=loss_type,
        calculate_KL=loss_type == "kto",
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
        _compute_kl_logps=lambda model, batch: kl[0],
    )
    mask = spans(tokens)
    inputs = completion_inputs(mask) | {"label": torch.tensor(labels), "ref_logps": logps[1]}
    inputs["ref_KL_logps"] = kl[1]
    return KTO_LOSS(trainer, fused_model(logps[0], mask), inputs, False)


def two_token_model(token_logps):
    """A causal model over the vocabulary {0, 1} that gives token 0 the log-probs [n, T - 1]."""
    logits = torch.stack([token_logps, log1mexp(token_logps)], dim=-1)
    logits = torch.cat([logits, torch.zeros(len(logits), 1, 2)], dim=1)
    return lambda *_, **__: SimpleNamespace(logits=logits)


def paired_inputs(completion, context):
    """CPO's and ORPO's batch: token 0 everywhere, labels on `completion`, attention there and on `context`."""
    count = len(completion) // 2
    first = torch.zeros(len(completion), 1, dtype=torch.long)
    labels = torch.cat([first - 100, torch.where(completion == 1, 0, -100)], dim=1)
    attention = torch.cat([first + 1, completion + context], dim=1)
    parts = {"input_ids": torch.zeros_like(labels), "attention_mask": attention, "labels": labels}
    branches = (("chosen", slice(None, count)), ("rejected", slice(count, None)))
    return {f"{branch}_{name}": part[rows] for branch, rows in branches for name, part in parts.items()}


def cpo(logps, tokens, options):
    """CPOTrainer's loss: `sigmoid` (CPO) or `simpo`, with `cpo_alpha` times the nll."""
    trainer = stub(
        CPOTrainer,
        alpha=0.0,
        pad_token_id=0,
        beta=options.get("beta", 0.1),
        loss_type="simpo" if options["loss_types"] == ["simpo"] else "sigmoid",
        label_smoothing=options.get("label_smoothing", 0.0),
        simpo_gamma=options.get("simpo_gamma", 0.5),
        cpo_alpha=options.get("cpo_alpha", 1.0),
    )
    mask = spans(tokens[0] + tokens[1])
    token_logps = torch.where(mask == 1, spread(torch.cat(logps), mask), -1.0)
    inputs = paired_inputs(mask, torch.zeros_like(mask))
    return CPO_LOSS(trainer, two_token_model(token_logps), inputs, "eval")[0]


def orpo(logps, tokens, prompts, prompt_tokens, options):
    """ORPOTrainer's loss; `prompts` [n] are the summed log-probs of the predicted prompt tokens."""
    trainer = stub(ORPOTrainer, padding_value=0, beta=options.get("beta", 0.1))
    trainer.odds_ratio_loss = ORPO_ODDS.__get__(trainer)
    twice = prompt_tokens + prompt_tokens
    context = spans(twice)
    mask = spans(tokens[0] + tokens[1], starts=twice)
    context = torch.nn.functional.pad(context, (0, mask.shape[1] - context.shape[1]))
    token_logps = spread(torch.cat(logps), mask) + spread(torch.cat([prompts, prompts]), context)
    token_logps = torch.where(mask + context == 1, token_logps, -1.0)
    return ORPO_LOSS(trainer, two_token_model(token_logps), paired_inputs(mask, context), "eval")[0]
