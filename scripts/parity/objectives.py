"""Golden values of the objectives alone, without a model.

    python scripts/parity/objectives.py

writes crates/seakeep/tests/golden/objectives.json: random batches of log-probabilities with the
loss and its derivatives by float64 autograd, for DPO and the KL-ball objectives. The exact KL
dual is solved twice, both unlike a Newton or bisection in double precision: its tau by bisection
in 50-digit arithmetic (mpmath), its value by scipy's scalar minimiser.
"""

import math
import random

import mpmath
import torch
from scipy.optimize import minimize_scalar

import common
from golden import OUT

BETAS = (0.01, 0.1, 0.5)
TAUS = (0.05, 0.5, 5.0)
SCALES = {"small": 0.1, "moderate": 10.0, "extreme": 1e4}
"""Standard deviation (for `extreme`: the bound) of the margins h, in nats."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 13, 16, 7)
LABEL_SMOOTHING = 0.1


# ---------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------


def batch_of_margins(kind, beta, margins, rng):
    """Policy and reference log-probs, at six decimals, whose margins are those given."""
    draw = lambda: round(rng.uniform(-300.0, -5.0), 6)
    rows = []
    for margin in margins:
        policy_chosen, reference_chosen, reference_rejected = draw(), draw(), draw()
        policy_rejected = policy_chosen - reference_chosen + reference_rejected - margin
        rows.append((policy_chosen, round(policy_rejected, 6), reference_chosen, reference_rejected))
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    return {"kind": kind, "beta": beta, **dict(zip(names, map(list, zip(*rows))))}


def random_margins(kind, size, rng):
    """Margins [size] of one of the three scales."""
    if kind == "extreme":
        return [rng.choice((-1.0, 1.0)) * 10 ** rng.uniform(0.0, 4.0) for _ in range(size)]
    return [rng.gauss(0.0, SCALES[kind]) for _ in range(size)]


def batches():
    """All batches: twelve sizes of three scales, and four that sit on an edge."""
    rng = random.Random(2502)
    made = []
    for index, size in enumerate(SIZES):
        for offset, kind in enumerate(SCALES):
            margins = random_margins(kind, size, rng)
            made.append(batch_of_margins(kind, BETAS[(index + offset) % 3], margins, rng))
    edges = {
        "policy = reference": [0.0] * 6,
        "two equal worst": [3.0, -4.0, 1.0, -4.0, 2.5],
        "bounds": [1e4, -1e4],
        "one outlier": [25.0, 31.0, 28.0, 26.0, 1.0, 27.0, 30.0, -800.0],
    }
    made += [batch_of_margins(kind, 0.1, margins, rng) for kind, margins in edges.items()]
    return made


# ---------------------------------------------------------------------------------------------
# The exact dual
# ---------------------------------------------------------------------------------------------


def tied_worst(losses):
    """A mask of the pairs whose loss is the largest, up to the rounding of the margins' sum."""
    top = max(losses)
    return [abs(loss - top) <= 1e-9 * max(1.0, abs(top)) for loss in losses]


def precise_kl(losses, tau):
    """KL(P || uniform) at temperature tau, and P, in mpmath's precision."""
    top = max(losses)
    exponentials = [mpmath.exp((loss - top) / tau) for loss in losses]
    total = mpmath.fsum(exponentials)
    weights = [value / total for value in exponentials]
    terms = [p * mpmath.log(p * len(losses)) for p in weights if p > 0]
    return mpmath.fsum(terms), weights


def solve_dual(losses, rho):
    """(tau, weights, value) of the worst case at radius rho; tau is None where none is attained.

    tau None with uniform weights: rho = 0, or all losses equal. tau None with the weight on the
    worst: rho at or beyond log(n / number of worst pairs), where the infimum lies at tau = 0.
    """
    count, worst = len(losses), tied_worst(losses)
    if rho == 0.0 or all(worst):
        return None, [1.0 / count] * count, sum(losses) / count
    if rho >= math.log(count / sum(worst)) - 1e-12:
        return None, [1.0 / sum(worst) if is_worst else 0.0 for is_worst in worst], max(losses)
    mpmath.mp.dps = 50
    exact = [mpmath.mpf(loss) for loss in losses]
    low, high = mpmath.mpf(-40), mpmath.mpf(40)
    for _ in range(160):
        middle = (low + high) / 2
        low, high = (middle, high) if precise_kl(exact, mpmath.exp(middle))[0] > rho else (low, middle)
    tau = mpmath.exp(low)
    weights = precise_kl(exact, tau)[1]
    value = mpmath.fsum(p * loss for p, loss in zip(weights, exact))
    check_dual(losses, rho, float(tau), float(value))
    return float(tau), [float(p) for p in weights], float(value)


def check_dual(losses, rho, tau, value):
    """The same value from scipy's minimiser of the dual function."""
    tensor = torch.tensor(losses, dtype=torch.float64)
    dual = lambda log_tau: common.dual_value(tensor, math.exp(log_tau), rho)
    bounds = (math.log(tau) - 5.0, math.log(tau) + 5.0)
    found = minimize_scalar(dual, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    assert abs(found.fun - value) < 1e-10 * max(1.0, abs(value)), (found.fun, value)


# ---------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------


def record(name, loss, chosen, rejected, **extra):
    """One objective's entry: its loss and derivatives in the policy's log-probs."""
    d_chosen, d_rejected = torch.autograd.grad(loss, (chosen, rejected), retain_graph=True)
    return {"name": name, **extra, "loss": loss.item(), "d_chosen": d_chosen, "d_rejected": d_rejected}


def rhos(count):
    """The radii of a batch: the last two just beyond log n (rounded up) and far beyond it."""
    log_count = math.ceil(math.log(count) * 1e6) / 1e6
    return (0.0, 0.05, 0.5, log_count, 2 * log_count)


def records(batch):
    """All objectives of one batch."""
    tensor = lambda key: torch.tensor(batch[key], dtype=torch.float64)
    chosen = tensor("chosen_logps").requires_grad_()
    rejected = tensor("rejected_logps").requires_grad_()
    margins = (chosen - tensor("ref_chosen_logps")) - (rejected - tensor("ref_rejected_logps"))
    losses = common.dpo_losses(margins, batch["beta"])
    smoothed = common.dpo_losses(margins, batch["beta"], LABEL_SMOOTHING)
    made = [
        record("dpo", losses.mean(), chosen, rejected, pair_losses=losses.detach()),
        record("dpo", smoothed.mean(), chosen, rejected, label_smoothing=LABEL_SMOOTHING),
    ]
    for tau in TAUS:
        weights = common.kldpo_weights(losses, tau)
        size = common.effective_size(weights)
        made.append(record("kldpo_tau", (weights * losses).sum(), chosen, rejected, tau=tau, effective_size=size))
        weights = common.kldpo_official_weights(losses, tau)
        made.append(record("kldpo_official", (weights * losses).mean(), chosen, rejected, tau=tau))
    for rho in rhos(len(losses)):
        tau, weights, value = solve_dual(losses.tolist(), rho)
        weights = torch.tensor(weights, dtype=torch.float64)
        extra = dict(rho=rho, tau=tau, dual=value, effective_size=common.effective_size(weights))
        made.append(record("kldpo_rho", (weights * losses).sum(), chosen, rejected, **extra))
    return made


def main():
    """Write objectives.json."""
    torch.set_num_threads(1)
    made = [{**batch, "objectives": records(batch)} for batch in batches()]
    path = OUT / "objectives.json"
    common.write_json(path, made, digits=12)
    print(f"{path.name}: {len(made)} batches, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
