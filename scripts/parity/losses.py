"""Every pair loss, value and derivative, by TRL's own code.

    python scripts/parity/losses.py --write            # crates/seakeep-cli/tests/golden/losses.json
    python scripts/parity/losses.py --seakeep target/release/seakeep

The references run TRL's methods in float64 (trl_losses.py); the losses that TRL lacks (smoothed
sigmoid, softmax over several rejected, rebel) are written from their formulas.
"""

import itertools
import math
import random

import torch
import torch.nn.functional as F

import common
import objective_cases
import trl_losses
from objective_cases import Case

BETAS = (0.01, 0.1, 0.5, 2.0)
PLAIN = ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
         "apo_down", "sft", "sigmoid_norm", "cpo", "orpo", "softmax", "rebel")
"""Losses that need no setting of their own."""
F_DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
F_DIVERGENCES = (
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.5},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
)
REFERENCE_FREE = ("cpo", "simpo", "orpo")
FLOAT32_MAX = torch.finfo(torch.float32).max
UNPAIRED = ("kto", "apo_zero_unpaired")


# ---------------------------------------------------------------------------------------------
# The settings compared
# ---------------------------------------------------------------------------------------------


def variants():
    """[(label, settings without beta)] of every loss, option and mix."""
    made = [(name, {"loss_type": name}) for name in PLAIN]
    made += [(name, {"loss_type": name, "label_smoothing": 0.1}) for name in ("sigmoid", "aot", "aot_unpaired")]
    made += [("exo_pair", {"loss_type": "exo_pair", "label_smoothing": value}) for value in (1e-3, 0.1)]
    made += [("robust", {"loss_type": "robust", "label_smoothing": value}) for value in (0.0, 0.1, 0.3)]
    made += [("discopop", {"loss_type": "discopop", "discopop_tau": value}) for value in (0.05, 0.5)]
    made += [("ipo, summed", {"loss_type": "ipo", "ipo_length_normalize": "false"})]
    made += [("simpo", {"loss_type": "simpo", "simpo_gamma": value}) for value in (0.0, 0.5)]
    made += [("simpo", {"loss_type": "simpo", "simpo_gamma": 1.2, "label_smoothing": 0.1})]
    made += [("simpo", {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.7})]
    made += [("cpo", {"loss_type": "cpo", "cpo_alpha": 0.3, "label_smoothing": 0.1})]
    weights = {"desirable_weight": 1.33, "undesirable_weight": 0.8}
    made += [(name, {"loss_type": name} | more) for name in UNPAIRED for more in ({}, weights)]
    return made + f_divergence_variants() + mix_variants()


def f_divergence_variants():
    """Every f-divergence with every loss that TRL allows it with."""
    smoothing = {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.1}}
    return [
        (f"{divergence['f_divergence_type']}, {name}", {"loss_type": name} | smoothing.get(name, {}) | divergence)
        for divergence, name in itertools.product(F_DIVERGENCES, F_DIVERGENCE_LOSSES)
    ]


def mix_variants():
    """Weighted sums of losses, and a loss with the nll term."""
    mixes = (
        ("sigmoid,bco_pair,sft", "0.8,0.2,1.0"),
        ("hinge,sppo_hard", "1.0,0.001"),
        ("ipo,aot_unpaired,apo_down", "0.01,0.5,2.0"),
        ("nca_pair,sigmoid_norm,discopop,aot", "0.25,0.25,0.25,0.25"),
    )
    made = [("mix", {"loss_type": names, "loss_weights": weights}) for names, weights in mixes]
    made += [("mix", {"loss_type": "apo_zero,hinge"})]
    with_nll = (("sigmoid", 0.5), ("hinge", 1.0), ("ipo", 0.1), ("bco_pair", 2.0))
    return made + [("rpo", {"loss_type": name, "rpo_alpha": alpha}) for name, alpha in with_nll]


# ---------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------


def log_ratio(kind, rng):
    """u = log pi - log ref of one completion."""
    if kind == "extreme":
        return rng.choice((-1.0, 1.0)) * 10 ** rng.uniform(0.0, 4.0)
    return rng.gauss(0.0, 1.0 if kind == "small" else 8.0)


def token_count(kind, rng):
    """A completion's length: up to 4096 in `long` batches."""
    return int(round(2 ** rng.uniform(0.0, 12.0 if kind == "long" else 6.0)))


def log_probs(kind, rng):
    """(policy, reference) of one completion, both below 0, six decimals."""
    ratio = log_ratio(kind, rng)
    reference = -rng.uniform(5.0, 300.0) - max(ratio, 0.0)
    return round(reference + ratio, 6), round(reference, 6)


def average_bound_logps(kind, tokens, rng):
    """A summed log-prob whose average per token lies in (-30, -1e-6); to -1000 in `extreme` batches."""
    return -tokens * 10 ** rng.uniform(-6.0, 3.0 if kind == "extreme" else 1.5)


def paired_row(kind, rng):
    """A pair with its reference."""
    (chosen, ref_chosen), (rejected, ref_rejected) = log_probs(kind, rng), log_probs(kind, rng)
    return {
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
        "chosen_tokens": token_count(kind, rng),
        "rejected_tokens": token_count(kind, rng),
    }


def reference_free_row(kind, rng):
    """A pair whose average log-probs matter; for ORPO also the prompt."""
    tokens = [token_count(kind, rng) for _ in range(3)]
    chosen, rejected, prompt = (average_bound_logps(kind, count, rng) for count in tokens)
    return {
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "chosen_tokens": tokens[0],
        "rejected_tokens": tokens[1],
        "prompt_logps": prompt,
        "prompt_tokens": tokens[2],
    }


def several_rejected_row(kind, rng):
    """A prompt with one to five rejected completions."""
    row, others = paired_row(kind, rng), [log_probs(kind, rng) for _ in range(rng.randint(1, 5))]
    return row | {
        "rejected_logps": [policy for policy, _ in others],
        "ref_rejected_logps": [reference for _, reference in others],
        "rejected_tokens": [token_count(kind, rng) for _ in others],
    }


def unpaired_row(kind, rng):
    """A completion that is desirable or not, and a mismatched one."""
    (policy, reference), (other, ref_other) = log_probs(kind, rng), log_probs(kind, rng)
    return {
        "completion_logps": policy,
        "ref_completion_logps": reference,
        "completion_tokens": token_count(kind, rng),
        "label": rng.random() < 0.5,
        "kl_logps": other,
        "ref_kl_logps": ref_other,
    }


def scored_row(kind, rng):
    """A pair with both completions' rewards."""
    return paired_row(kind, rng) | {"score_chosen": round(rng.gauss(1.0, 2.0), 6),
                                    "score_rejected": round(rng.gauss(0.0, 2.0), 6)}


def row_maker(loss_type):
    """The kind of row that a loss takes."""
    special = {"softmax": several_rejected_row, "rebel": scored_row}
    special |= {name: unpaired_row for name in UNPAIRED} | {name: reference_free_row for name in REFERENCE_FREE}
    return special.get(loss_type, paired_row)


# ---------------------------------------------------------------------------------------------
# References
# ---------------------------------------------------------------------------------------------


def leaf(rows, name):
    """The column `name` as a tensor [n] to differentiate by."""
    return torch.tensor([row[name] for row in rows]).requires_grad_()


def column(rows, name):
    """The column `name` as a constant tensor [n]."""
    return torch.tensor([float(row[name]) for row in rows])


def softmax_loss(rows, beta):
    """mean log(1 + sum_k exp(beta (u_lk - u_w))), with its leaves."""
    chosen = leaf(rows, "chosen_logps")
    rejected = [torch.tensor(row["rejected_logps"]).requires_grad_() for row in rows]
    ratios = chosen - column(rows, "ref_chosen_logps")
    losses = []
    for row, ratio, logps in zip(rows, ratios, rejected):
        others = beta * (logps - torch.tensor(row["ref_rejected_logps"]) - ratio)
        losses.append(torch.cat([torch.zeros(1), others]).logsumexp(0))
    return torch.stack(losses).mean(), {"chosen_logps": chosen, "rejected_logps": rejected}


def margins(rows, chosen, rejected):
    """Log-ratio margins h [n]."""
    return (chosen - column(rows, "ref_chosen_logps")) - (rejected - column(rows, "ref_rejected_logps"))


def formula_loss(rows, options, chosen, rejected):
    """The losses on h that TRL lacks: rebel and the smoothed sigmoid."""
    h = margins(rows, chosen, rejected)
    if options["loss_types"] == ["rebel"]:
        rewards = column(rows, "score_chosen") - column(rows, "score_rejected")
        return ((options["beta"] * h - rewards) ** 2).mean()
    return common.dpo_losses(h, options["beta"], options["label_smoothing"]).mean()


def unpaired_loss(rows, options):
    """KTO's trainer, with its leaves."""
    policy = leaf(rows, "completion_logps")
    kl = (column(rows, "kl_logps"), column(rows, "ref_kl_logps"))
    tokens, labels = [row["completion_tokens"] for row in rows], [row["label"] for row in rows]
    loss = trl_losses.kto((policy, column(rows, "ref_completion_logps")), tokens, labels, kl, options)
    return loss, {"completion_logps": policy}


def orpo_loss(rows, tokens, options, chosen, rejected):
    """ORPO's trainer, with its leaves."""
    prompts = leaf(rows, "prompt_logps")
    loss = trl_losses.orpo((chosen, rejected), tokens, prompts, [row["prompt_tokens"] for row in rows], options)
    return loss, {"chosen_logps": chosen, "rejected_logps": rejected, "prompt_logps": prompts}


def trl_options(settings):
    """Settings as trl_losses takes them: `rpo_alpha` as one more loss, types and weights as lists."""
    options = {key: value for key, value in settings.items() if not isinstance(value, str)}
    options["f_divergence_type"] = settings.get("f_divergence_type", "reverse_kl")
    options["loss_types"] = settings["loss_type"].split(",")
    weights = settings.get("loss_weights", ",".join("1" for _ in options["loss_types"]))
    options["loss_weights"] = [float(part) for part in weights.split(",")]
    if "rpo_alpha" in settings:
        options["loss_types"].append("sft")
        options["loss_weights"].append(settings["rpo_alpha"])
    return options


def reference(settings, rows):
    """(loss, {field of a row: its leaf tensor [n], or a list of n tensors})."""
    options = trl_options(settings)
    first = options["loss_types"][0]
    if first in UNPAIRED:
        return unpaired_loss(rows, options)
    if first == "softmax":
        return softmax_loss(rows, options["beta"])
    chosen, rejected = leaf(rows, "chosen_logps"), leaf(rows, "rejected_logps")
    tokens = ([row["chosen_tokens"] for row in rows], [row["rejected_tokens"] for row in rows])
    if first == "orpo":
        return orpo_loss(rows, tokens, options, chosen, rejected)
    leaves = {"chosen_logps": chosen, "rejected_logps": rejected}
    if first == "rebel" or (first == "sigmoid" and options.get("label_smoothing")):
        return formula_loss(rows, options, chosen, rejected), leaves
    if first in REFERENCE_FREE:
        options.setdefault("cpo_alpha", 0.0 if first == "simpo" else 1.0)
        return trl_losses.cpo((chosen, rejected), tokens, options), leaves
    if settings.get("ipo_length_normalize") == "false":
        tokens = ([1] * len(rows), [1] * len(rows))
    logps = (chosen, rejected, column(rows, "ref_chosen_logps"), column(rows, "ref_rejected_logps"))
    return trl_losses.dpo(logps, tokens, options), leaves


def gradients(loss, leaves):
    """d loss / d leaf, of the same shape as `leaves`."""
    names = [(name, i) for name, value in leaves.items() if isinstance(value, list) for i in range(len(value))]
    names += [(name, None) for name, value in leaves.items() if not isinstance(value, list)]
    inputs = [leaves[name] if i is None else leaves[name][i] for name, i in names]
    made = {name: {} for name in leaves}
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    for (name, i), grad in zip(names, found):
        made[name] |= dict(enumerate(grad.tolist())) if i is None else {i: grad.tolist()}
    return made


def score_overflows(settings, rows):
    """Whether the forward KL's score 1 - exp(-u) of some completion is too large for TRL's float32."""
    if settings.get("f_divergence_type") != "forward_kl":
        return False
    ratios = (row[f"{b}_logps"] - row[f"ref_{b}_logps"] for row in rows for b in ("chosen", "rejected"))
    return min(ratios) < -math.log(FLOAT32_MAX)


def expectation(settings, rows):
    """What a case expects: the loss and every row's derivatives; None where TRL's numbers, float32, overflow."""
    loss, leaves = reference(settings, rows)
    grads = gradients(loss, leaves)
    made = [{f"d_{name}": grads[name][i] for name in leaves} for i in range(len(rows))]
    numbers = [number for row in made for value in row.values() for number in objective_cases.flat(value)]
    held = all(abs(number) <= FLOAT32_MAX for number in [loss.item(), *numbers])
    if not held or score_overflows(settings, rows):
        return None
    return {"loss": loss.item(), "rows": made}


# ---------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------


def make_case(label, settings, kind, size, rng):
    """A random batch of one kind and its reference."""
    make_row = row_maker(settings["loss_type"])
    rows = [make_row(kind, rng) for _ in range(size)]
    name = f"{settings['loss_type']}, {kind}, {size} rows"
    return Case(label, name, settings, rows, expectation(settings, rows))


def check_derivatives(case, step=1e-5):
    """The derivatives of a case of moderate numbers against central differences along a random direction."""
    rng, slope = random.Random(1), 0.0
    moved = {-1: [], 1: []}
    for row, expected in zip(case.rows, case.expect["rows"]):
        shifts = {}
        for name in expected:
            plain = objective_cases.flat(row[name[2:]])
            directions = [rng.choice((-1.0, 1.0)) * min(1.0, abs(value)) for value in plain]
            slope += sum(d * g for d, g in zip(directions, objective_cases.flat(expected[name])))
            shifts[name[2:]] = list(zip(plain, directions))
        for sign, rows in moved.items():
            changed = {name: [value + sign * step * d for value, d in pairs] for name, pairs in shifts.items()}
            rows.append(row | {k: v if isinstance(row[k], list) else v[0] for k, v in changed.items()})
    high, low = (reference(case.settings, moved[sign])[0].item() for sign in (1, -1))
    found = (high - low) / (2 * step)
    assert abs(found - slope) < 1e-5 * (1.0 + abs(slope)), (case.name, case.settings, found, slope)


def check_formulas():
    """The formulas written here agree with TRL where both exist."""
    rng = random.Random(3)
    rows = [paired_row("moderate", rng) for _ in range(9)]
    wanted = reference({"loss_type": "sigmoid", "beta": 0.1}, rows)[0]
    h = margins(rows, column(rows, "chosen_logps"), column(rows, "rejected_logps"))
    torch.testing.assert_close(common.dpo_losses(h, 0.1).mean(), wanted, rtol=1e-14, atol=0.0)
    listed = [row | {name: [row[name]] for name in ("rejected_logps", "ref_rejected_logps")} for row in rows]
    torch.testing.assert_close(softmax_loss(listed, 0.1)[0], wanted, rtol=1e-14, atol=0.0)
    free = [reference_free_row("moderate", rng) for _ in range(9)]
    torch.testing.assert_close(reference({"loss_type": "orpo", "beta": 0.1}, free)[0], orpo_formula(free, 0.1))


def orpo_formula(rows, beta):
    """ORPO written out: the nll over prompt and chosen tokens, minus beta mean log sigmoid(log odds)."""
    total = lambda *names: sum(row[name] for row in rows for name in names)
    nll = -total("prompt_logps", "chosen_logps") / total("prompt_tokens", "chosen_tokens")
    chosen, rejected = (column(rows, f"{b}_logps") / column(rows, f"{b}_tokens") for b in ("chosen", "rejected"))
    log_odds = chosen - rejected - torch.log(-torch.expm1(chosen)) + torch.log(-torch.expm1(rejected))
    return nll - beta * F.logsigmoid(log_odds).mean()


def goldens():
    """(file name, cases): of every variant a small batch at one beta, and an extreme one at another."""
    check_formulas()
    rng, made = random.Random(2305), []
    for index, (label, settings) in enumerate(variants()):
        betas = (BETAS[index % 3], BETAS[(index + 1) % 3])
        kind = "small" if "f_divergence_type" in settings else "moderate"
        steady = make_case(label, settings | {"beta": betas[0]}, kind, 4, rng)
        check_derivatives(steady)
        made += [steady, make_case(label, settings | {"beta": betas[1]}, "extreme", 3, rng)]
    return "losses.json", made


def fresh(seed):
    """Thousands of random examples: every variant at every beta, in batches of 1 to 64."""
    rng = random.Random(seed)
    plan = [("small", 16), ("moderate", 64), ("moderate", 7), ("extreme", 16), ("extreme", 1), ("long", 3)]
    return [
        make_case(label, settings | {"beta": beta}, kind, size, rng)
        for (label, settings), beta, (kind, size) in itertools.product(variants(), BETAS, plan)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    objective_cases.main(__doc__, goldens, fresh)
