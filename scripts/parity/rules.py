"""Every robust rule, value and derivative, from its formula.

    python scripts/parity/rules.py --write             # crates/seakeep-cli/tests/golden/rules.json
    python scripts/parity/rules.py --seakeep target/release/seakeep

Weights are NumPy's, derivatives PyTorch's. The worst cases over balls are solved by sorting and
checked against a convex solver (cvxpy); sparsemax against a quadratic program; dpo_pro's inner
maximum against a search over its ball; the MMD against a double loop.
"""

import itertools
import math
import random
from dataclasses import dataclass

import cvxpy
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq

import common
import losses as pair_cases
import objective_cases
from objective_cases import Case

NEAR = 1e-5
"""Losses closer than this, relative to the largest, may or may not count as tied: only the value is compared."""


# ---------------------------------------------------------------------------------------------
# Pair losses, one a pair
# ---------------------------------------------------------------------------------------------


def pair_losses(settings, chosen, rejected):
    """l_i [n]; `chosen` and `rejected` are (log-ratios u [n], token counts [n], rewards [n])."""
    (u_w, t_w, r_w), (u_l, t_l, r_l), beta = chosen, rejected, settings["beta"]
    z, smoothing = beta * (u_w - u_l), settings.get("label_smoothing", 0.0)
    log_q, log_p = F.logsigmoid(z), F.logsigmoid(-z)
    exo = lambda: log_q.exp() * (log_q - math.log1p(-smoothing)) + log_p.exp() * (log_p - math.log(smoothing))
    formulas = {
        "sigmoid": lambda: -(1 - smoothing) * log_q - smoothing * log_p,
        "robust": lambda: (smoothing * log_p - (1 - smoothing) * log_q) / (1 - 2 * smoothing),
        "exo_pair": exo,
        "hinge": lambda: F.relu(1 - z),
        "ipo": lambda: (u_w / t_w - u_l / t_l - 1 / (2 * beta)) ** 2,
        "sigmoid_norm": lambda: -F.logsigmoid(beta * (u_w / t_w - u_l / t_l)),
        "sppo_hard": lambda: (u_w - 0.5 / beta) ** 2 + (u_l + 0.5 / beta) ** 2,
        "bco_pair": lambda: -F.logsigmoid(beta * u_w) - F.logsigmoid(-beta * u_l),
        "nca_pair": lambda: -F.logsigmoid(beta * u_w) - F.logsigmoid(-beta * torch.stack([u_w, u_l])).mean(0),
        "apo_zero": lambda: torch.sigmoid(-beta * u_w) + torch.sigmoid(beta * u_l),
        "apo_down": lambda: torch.sigmoid(beta * u_w) + torch.sigmoid(-z),
        "rebel": lambda: (z - (r_w - r_l)) ** 2,
    }
    return formulas[settings["loss_type"]]()


@dataclass
class Batch:
    """A global batch as tensors [n]: the leaves, their log-ratios, l(z) and l(-z)."""

    rows: list
    settings: dict
    chosen: torch.Tensor
    rejected: torch.Tensor
    u_w: torch.Tensor
    u_l: torch.Tensor
    losses: torch.Tensor
    swapped: torch.Tensor

    @property
    def values(self):
        """The losses as numbers."""
        return self.losses.detach().numpy()

    @property
    def z(self):
        """beta h as numbers."""
        return self.settings["beta"] * (self.u_w - self.u_l).detach().numpy()


def smoothing_is_label(settings):
    """Whether the label smoothing says how sure the labels are (dpo_pro of DPO's loss) and not how to smooth."""
    return settings["rule"] == "dpo_pro" and settings["loss_type"] == "sigmoid"


def load(rows, settings):
    """The batch of some rows."""
    chosen, rejected = pair_cases.leaf(rows, "chosen_logps"), pair_cases.leaf(rows, "rejected_logps")
    u_w = chosen - pair_cases.column(rows, "ref_chosen_logps")
    u_l = rejected - pair_cases.column(rows, "ref_rejected_logps")
    winner = (u_w, pair_cases.column(rows, "chosen_tokens"), pair_cases.column(rows, "score_chosen"))
    loser = (u_l, pair_cases.column(rows, "rejected_tokens"), pair_cases.column(rows, "score_rejected"))
    plain = settings | {"label_smoothing": 0.0} if smoothing_is_label(settings) else settings
    straight, swapped = pair_losses(plain, winner, loser), pair_losses(plain, loser, winner)
    return Batch(rows, settings, chosen, rejected, u_w, u_l, straight, swapped)


# ---------------------------------------------------------------------------------------------
# Worst cases over balls: weights [n] of losses [n]; ties share equally
# ---------------------------------------------------------------------------------------------


def tied_groups(values):
    """Index arrays of equal values, largest first."""
    return [np.flatnonzero(values == value) for value in np.unique(values)[::-1]]


def kl_weights(values, rho):
    """sum P log(n P) <= rho: exponential tilting at the temperature of that radius."""
    count, worst = len(values), tied_groups(values)[0]
    if rho == 0.0 or len(worst) == count:
        return np.full(count, 1 / count)
    if rho >= math.log(count / len(worst)):
        return np.where(values == values.max(), 1 / len(worst), 0.0)
    tensor = torch.tensor(values)
    return common.kldpo_weights(tensor, common.kldpo_tau_of_rho(tensor, rho)).numpy()


def chi2_weights(values, rho):
    """sum n (P - 1/n)^2 <= rho: linear in the loss on the m worst, zero on the rest.

    With all the ball used, sum P^2 = (1 + rho)/n fixes the slope for each m; the right m is the one
    that leaves no weight negative and no left-out pair a positive one.
    """
    count, groups = len(values), tied_groups(values)
    if len(groups) == 1 or rho == 0.0:
        return np.full(count, 1 / count)
    if rho >= count / len(groups[0]) - 1:
        return np.where(values == values.max(), 1 / len(groups[0]), 0.0)
    for used in range(len(groups), 1, -1):
        members = np.concatenate(groups[:used])
        centred = values - values[members].mean()
        slack = (1 + rho) / count - 1 / len(members)
        if slack < 0:
            break
        weights = 1 / len(members) + centred * math.sqrt(slack / (centred[members] ** 2).sum())
        if weights[members].min() >= 0 and (used == len(groups) or weights[groups[used]].max() <= 0):
            return np.where(np.isin(np.arange(count), members), weights, 0.0)
    raise AssertionError(("no active set", values, rho))


def cvar_weights(values, alpha):
    """P <= 1/(alpha n): the worst pairs are filled up one after the other."""
    weights, left = np.zeros(len(values)), 1.0
    for group in tied_groups(values):
        mass = min(left, len(group) / (alpha * len(values)))
        weights[group] = mass / len(group)
        left -= mass
    return weights


def tv_weights(values, rho):
    """0.5 sum |P - 1/n| <= rho: mass moves from the best pairs to the worst."""
    count, groups = len(values), tied_groups(values)
    weights = np.full(count, 1 / count)
    left = min(rho, 1 - len(groups[0]) / count)
    weights[groups[0]] += left / len(groups[0])
    for group in groups[:0:-1]:
        mass = min(left, len(group) / count)
        weights[group] -= mass / len(group)
        left -= mass
    return weights


def group_weights(values, names, step_size):
    """One multiplicative update of uniform group weights, with the shares of these rows."""
    count, groups = len(values), sorted(set(names))
    members = {name: np.array([other == name for other in names]) for name in groups}
    share = {name: members[name].sum() / count for name in groups}
    estimates = np.array([values[members[name]].sum() / count / share[name] for name in groups])
    alpha = np.exp(step_size * (estimates - estimates.max()))
    alpha = dict(zip(groups, alpha / alpha.sum()))
    return np.array([alpha[name] / share[name] / count for name in names])


# ---------------------------------------------------------------------------------------------
# Rules: a batch in; (loss to differentiate, weights or None) out
# ---------------------------------------------------------------------------------------------


def weighted(batch, weights):
    """sum w l with w constant."""
    weights = np.asarray(weights)
    return (torch.tensor(weights) * batch.losses).sum(), weights


def mean_rule(batch):
    """The plain mean."""
    return weighted(batch, np.full(len(batch.rows), 1 / len(batch.rows)))


def kldpo_rule(batch):
    """At a temperature, at a radius, or with the authors' weights."""
    settings = batch.settings
    if settings.get("kldpo_form") == "official":
        weights = common.kldpo_official_weights(batch.losses, settings["kldpo_tau"])
        return weighted(batch, weights / len(batch.rows))
    if "kldpo_tau" in settings:
        return weighted(batch, common.kldpo_weights(batch.losses, settings["kldpo_tau"]))
    return weighted(batch, kl_weights(batch.values, settings["kldpo_rho"]))


def drdpo_rule(batch):
    """-beta' log mean exp(-l / beta'), the gradient through it; the weights are that gradient's."""
    beta = batch.settings["drdpo_beta"]
    loss = -beta * (torch.logsumexp(-batch.losses / beta, 0) - math.log(len(batch.rows)))
    return loss, (-batch.losses.detach() / beta).softmax(0).numpy()


def sparsemax(values):
    """The Euclidean projection of `values` on the simplex, by sorting."""
    ordered = np.sort(values)[::-1]
    sums = np.cumsum(ordered)
    ranks = np.arange(1, len(values) + 1)
    support = ranks[1 + ranks * ordered > sums].max()
    return np.maximum(0.0, values - (sums[support - 1] - 1) / support)


def flip_probabilities(batch):
    """p [n]: sparsemax of the flip gains, scaled to the budget, capped, the rest given on in proportion."""
    gains = np.maximum(0.0, batch.values - batch.swapped.detach().numpy())
    if batch.settings.get("progress", 1.0) < batch.settings.get("winsor_warmup", 0.3) or gains.max() == 0.0:
        return np.zeros(len(gains))
    share = sparsemax(gains / batch.settings.get("winsor_tau", 1.0))
    budget = batch.settings.get("winsor_flip_budget", 0.15) * len(gains)
    capped = np.zeros(len(gains), dtype=bool)
    while True:
        open_share = share[~capped].sum()
        scale = (budget - capped.sum()) / open_share if open_share > 0 else 0.0
        over = ~capped & (scale * share > 1)
        if not over.any():
            return np.where(capped, 1.0, scale * share)
        capped |= over


def winsor_budget(batch):
    """rho_w: what the batch's doubt gives after the warm-up, a constant before it."""
    settings, z = batch.settings, batch.z
    if settings.get("progress", 1.0) < settings.get("winsor_warmup", 0.3):
        return settings.get("winsor_budget_warmup", 0.15)
    low, high = settings.get("winsor_budget_min", 0.02), settings.get("winsor_budget_max", 0.5)
    scale = np.abs(z).mean()
    doubt = torch.sigmoid(torch.tensor(-z / scale)).mean().item() if scale > 0 else 0.5
    return low + (high - low) * doubt


def mixed_losses(batch):
    """m [n]: the losses with likely flips mixed with their swap."""
    flips = torch.tensor(flip_probabilities(batch))
    return (1 - flips) * batch.losses + flips * batch.swapped


def winsor_excess(batch):
    """How far each m lies beyond the threshold."""
    values = mixed_losses(batch).detach().numpy()
    return np.maximum(0.0, values - np.quantile(values, batch.settings.get("winsor_quantile", 0.7)))


def winsor_rule(batch):
    """The tail of the mixed losses drawn in to its threshold; (1 - r) m + r T = m - r (m - T)."""
    excess = winsor_excess(batch)
    total, budget = excess.sum(), winsor_budget(batch) * len(excess)
    drawn = np.minimum(1.0, budget * excess / total) if total > 0 else excess
    mixed = mixed_losses(batch)
    threshold = mixed.detach() - torch.tensor(excess)
    drawn = torch.tensor(drawn)
    return ((1 - drawn) * mixed + drawn * threshold).mean(), None


def dpo_pro_rule(batch):
    """The worst case over how sure the data are of each pair; without a column, 1 - label_smoothing."""
    unsaid = 1.0 - batch.settings.get("label_smoothing", 0.0)
    q = torch.tensor([row.get("soft_label", unsaid) for row in batch.rows])
    bound = torch.where(batch.losses > batch.swapped, 1 - q, q)
    shift = torch.minimum((batch.settings["dpo_pro_rho"] * q * (1 - q)).sqrt(), bound)
    made = q * batch.losses + (1 - q) * batch.swapped + shift * (batch.losses - batch.swapped).abs()
    return made.mean(), None


def bandwidth(points, given):
    """The kernel's sigma: given, or the median distance of two pairs, at least 0.01."""
    if given is not None:
        return given
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]
    return max(0.01, float(np.median(distances))) if distances else 0.01


def causal_rule(batch):
    """Environments balanced (backdoor) and made alike (MMD)."""
    settings = batch.settings
    shares = np.array([row["environments"] for row in batch.rows])
    inner = shares / shares.sum(0)
    count = shares.shape[1]
    prior = shares.mean(0) if settings["causal_prior"] == "empirical" else np.full(count, 1 / count)
    loss, weights = weighted(batch, inner @ prior)
    points = settings["beta"] * torch.stack([batch.u_w, batch.u_l], dim=1)
    sigma = bandwidth(points.detach().numpy(), settings.get("causal_bandwidth"))
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    kernel = torch.exp(-squares / (2 * sigma**2))
    gaps = [torch.tensor(inner[:, a] - inner[:, b]) for a, b in itertools.combinations(range(count), 2)]
    apart = sum(gap @ kernel @ gap for gap in gaps) / len(gaps)
    return loss + settings["causal_lambda"] * apart, weights


def group_rule(batch):
    """Multiplicative weights over the named groups."""
    names = [row["group"] for row in batch.rows]
    return weighted(batch, group_weights(batch.values, names, batch.settings["group_step_size"]))


RULES = {
    "mean": mean_rule,
    "kldpo": kldpo_rule,
    "drdpo": drdpo_rule,
    "winsor": winsor_rule,
    "dpo_pro": dpo_pro_rule,
    "causal": causal_rule,
    "chi2": lambda batch: weighted(batch, chi2_weights(batch.values, batch.settings["chi2_rho"])),
    "cvar": lambda batch: weighted(batch, cvar_weights(batch.values, batch.settings["cvar_alpha"])),
    "tv": lambda batch: weighted(batch, tv_weights(batch.values, batch.settings["tv_rho"])),
    "group": group_rule,
}
WITH_TIES = ("kldpo", "chi2", "cvar", "tv", "winsor", "dpo_pro")


def nearly_tied(batch, weights):
    """Whether two losses that are almost but not quite equal are treated differently."""
    values, near = batch.values, NEAR * np.abs(batch.values).max()
    gains = values - batch.swapped.detach().numpy()
    slight = lambda sizes: bool(np.any((sizes > 0) & (sizes < near)))
    if batch.settings["rule"] == "winsor":
        return slight(winsor_excess(batch)) or slight(gains.max())
    if batch.settings["rule"] == "dpo_pro":
        return slight(np.abs(gains))
    order = np.argsort(values)
    gaps, jumps = np.diff(values[order]), np.abs(np.diff(weights[order]))
    return bool(np.any((gaps > 0) & (gaps < near) & (jumps > 1e-9)))


def expectation(settings, rows):
    """What a case expects. Near ties leave only the loss to compare; with winsor, which draws the few
    large losses in to small ones, not even that."""
    batch = load(rows, settings)
    loss, weights = RULES[settings["rule"]](batch)
    chosen, rejected = torch.autograd.grad(loss, (batch.chosen, batch.rejected))
    made = [{"d_chosen_logps": a, "d_rejected_logps": b} for a, b in zip(chosen.tolist(), rejected.tolist())]
    if weights is not None:
        made = [row | {"weight": weight} for row, weight in zip(made, weights.tolist())]
    if settings["rule"] in WITH_TIES and nearly_tied(batch, weights):
        if settings["rule"] == "winsor":
            return None
        made = [{} for _ in rows]
    return {"loss": loss.item(), "rows": made}


# ---------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------


def variants():
    """[(label, settings of the rule)]."""
    several = lambda label, rule, key, values: [(label, {"rule": rule, key: value}) for value in values]
    made = [("mean", {"rule": "mean"})]
    made += several("kldpo, tau", "kldpo", "kldpo_tau", (0.05, 0.5, 5.0))
    made += several("kldpo, rho", "kldpo", "kldpo_rho", (0.0, 0.01, 0.1, 0.5, 2.0, 5.0))
    made += [(f"{label}, official", settings | {"kldpo_form": "official"}) for label, settings in
             several("kldpo", "kldpo", "kldpo_tau", (0.05, 0.5, 5.0))]
    made += several("drdpo", "drdpo", "drdpo_beta", (0.1, 1.0, 10.0))
    made += several("chi2", "chi2", "chi2_rho", (0.0, 0.05, 0.5, 3.0, 100.0))
    made += several("cvar", "cvar", "cvar_alpha", (0.02, 0.25, 0.3, 0.7, 1.0))
    made += several("tv", "tv", "tv_rho", (0.0, 0.05, 0.33, 0.7, 1.0))
    made += several("dpo_pro", "dpo_pro", "dpo_pro_rho", (0.0, 0.1, 1.0, 10.0))
    made += several("group", "group", "group_step_size", (0.01, 1.0))
    return made + winsor_variants() + causal_variants()


def winsor_variants():
    """The official numbers, others that reach the caps, and the warm-up."""
    others = {"winsor_flip_budget": 0.6, "winsor_tau": 0.3, "winsor_quantile": 0.45,
              "winsor_budget_min": 0.3, "winsor_budget_max": 0.95}
    early = [{"progress": 0.1} | more for more in ({}, {"winsor_budget_warmup": 0.4}, {"winsor_warmup": 0.05})]
    return [("winsor", {"rule": "winsor"} | more) for more in ({}, others, {"winsor_tau": 10.0}, *early)]


def causal_variants():
    """Both priors, with and without the invariance term, a given bandwidth."""
    made = [{"causal_lambda": 0.0, "causal_prior": "uniform"}, {"causal_lambda": 1.0, "causal_prior": "uniform"},
            {"causal_lambda": 0.1, "causal_prior": "empirical"},
            {"causal_lambda": 1.0, "causal_prior": "uniform", "causal_bandwidth": 2.0}]
    return [("causal", {"rule": "causal"} | settings) for settings in made]


def random_environments(size, count, rng):
    """p_e(i) [size][count] in units of 1/64 (so that they sum to 1 exactly), no environment empty."""
    while True:
        made = []
        for _ in range(size):
            cuts = sorted(rng.choice((0, 64, rng.randint(0, 64))) for _ in range(count - 1))
            made.append([(b - a) / 64 for a, b in zip([0, *cuts], [*cuts, 64])])
        if all(sum(row[e] for row in made) > 0 for e in range(count)):
            return made


def random_rows(kind, size, rng):
    """A batch: plain kinds of losses.py, `equal` rows, rows with `ties`, or one `outlier`."""
    plain = kind if kind in ("small", "moderate", "extreme") else "moderate"
    rows = [pair_cases.scored_row(plain, rng) for _ in range(size)]
    if kind == "equal":
        return [dict(rows[0]) for _ in rows]
    if kind == "ties":
        return [dict(rng.choice(rows[:3])) for _ in rows]
    if kind == "outlier":
        rows[rng.randrange(size)] |= {"chosen_logps": -2500.0}
    return rows


def add_columns(rows, rule, rng):
    """The columns that a rule reads."""
    if rule == "dpo_pro":
        sure = lambda: rng.choice((0.0, 0.5, 1.0)) if rng.random() < 0.25 else round(rng.random(), 6)
        return [row | ({"soft_label": sure()} if rng.random() < 0.8 else {}) for row in rows]
    if rule == "group":
        return [row | {"group": rng.choice("abcd"[: rng.randint(1, 4)])} for row in rows]
    if rule == "causal":
        environments = random_environments(len(rows), rng.choice((2, 2, 3)), rng)
        return [row | {"environments": shares} for row, shares in zip(rows, environments)]
    return rows


def make_case(label, settings, kind, size, rng):
    """A random batch of one kind and its reference."""
    rows = add_columns(random_rows(kind, size, rng), settings["rule"], rng)
    return Case(label, f"{settings['rule']}, {kind}, {size} rows", settings, rows, expectation(settings, rows))


SIGMOID = {"loss_type": "sigmoid", "beta": 0.1}
OTHER_LOSSES = (
    {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.2},
    {"loss_type": "hinge", "beta": 0.2},
    {"loss_type": "ipo", "beta": 0.1},
    {"loss_type": "sppo_hard", "beta": 0.05},
    {"loss_type": "bco_pair", "beta": 0.1},
    {"loss_type": "apo_zero", "beta": 0.3},
    {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.1},
    {"loss_type": "exo_pair", "beta": 0.1, "label_smoothing": 0.05},
    {"loss_type": "sigmoid_norm", "beta": 1.0},
    {"loss_type": "nca_pair", "beta": 0.1},
    {"loss_type": "apo_down", "beta": 0.1},
    {"loss_type": "rebel", "beta": 0.2},
)


def goldens():
    """(file name, cases): every variant on a plain and a special batch of DPO's loss, and with another loss."""
    check_everything()
    rng, made = random.Random(2603), []
    special = itertools.cycle((("ties", 6), ("outlier", 5), ("extreme", 4), ("equal", 3), ("small", 1)))
    other = itertools.cycle(OTHER_LOSSES)
    for label, settings in variants():
        made.append(make_case(label, SIGMOID | settings, "moderate", 6, rng))
        made.append(make_case(label, SIGMOID | settings, *next(special), rng))
        made.append(make_case(label, next(other) | settings, "moderate", 4, rng))
    return "rules.json", made


def fresh(seed):
    """Thousands of random examples: every variant and kind in batches of 1 to 64, and every other loss."""
    check_everything()
    rng = random.Random(seed)
    plan = [("moderate", size) for size in (1, 2, 3, 11, 32, 64)]
    plan += [("small", 16), ("small", 64), ("extreme", 5), ("extreme", 24), ("ties", 9), ("ties", 40),
             ("outlier", 16), ("equal", 7)]
    todo = list(itertools.product(variants(), [SIGMOID], plan))
    todo += itertools.product(variants(), OTHER_LOSSES, [("small", 8), ("moderate", 20)])
    return [make_case(label, loss | rule, kind, size, rng) for (label, rule), loss, (kind, size) in todo]


# ---------------------------------------------------------------------------------------------
# Checks of the references themselves
# ---------------------------------------------------------------------------------------------


def solved(values, constraints):
    """sup p.l over the simplex and `constraints(p)`, by a convex solver."""
    p = cvxpy.Variable(len(values), nonneg=True)
    scale = max(1.0, np.abs(values).max())
    problem = cvxpy.Problem(cvxpy.Maximize(p @ (values / scale)), [cvxpy.sum(p) == 1, *constraints(p)])
    return problem.solve(solver=cvxpy.CLARABEL) * scale


def check_balls():
    """The weights lie in their balls, and no convex solver finds a worse case."""
    rng = np.random.default_rng(1)
    for size in (2, 5, 17):
        values = rng.exponential(2.0, size)
        values[-1] = values[0]
        share = 1 / size
        for rho in (0.05, 0.4, 1.5):
            for weights, constraints in (
                (kl_weights(values, rho), lambda p: [cvxpy.sum(cvxpy.rel_entr(p, share)) <= rho]),
                (chi2_weights(values, rho), lambda p: [size * cvxpy.sum_squares(p - share) <= rho]),
                (tv_weights(values, min(rho, 1.0)), lambda p: [0.5 * cvxpy.norm1(p - share) <= min(rho, 1.0)]),
                (cvar_weights(values, min(rho, 1.0)), lambda p: [p <= share / min(rho, 1.0)]),
            ):
                assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-12
                worst, found = solved(values, constraints), weights @ values
                assert abs(worst - found) < 2e-6 * values.max(), (size, rho, worst, found)


def check_sparsemax():
    """Against the projection as a quadratic program."""
    rng = np.random.default_rng(2)
    for size in (1, 3, 12):
        values = rng.normal(0.0, 1.0, size)
        p = cvxpy.Variable(size, nonneg=True)
        distance = cvxpy.Minimize(cvxpy.sum_squares(p - values))
        cvxpy.Problem(distance, [cvxpy.sum(p) == 1]).solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(sparsemax(values), p.value, atol=1e-5)


def check_flips():
    """Capped and given on in proportion is `min(1, c s)` with c such that the whole budget is spent."""
    rng = random.Random(7)
    for size, budget in itertools.product((1, 4, 15, 40), (0.15, 0.6, 0.95)):
        settings = SIGMOID | {"rule": "winsor", "winsor_flip_budget": budget}
        batch = load(random_rows("moderate", size, rng), settings)
        if batch.z.min() > 0:
            continue
        share = sparsemax(np.maximum(0.0, batch.values - batch.swapped.detach().numpy()))
        spent = lambda scale: np.minimum(1.0, scale * share)
        if budget * size >= (share > 0).sum():
            wanted = (share > 0).astype(float)
        else:
            wanted = spent(brentq(lambda scale: spent(scale).sum() - budget * size, 0.0, 1e9, xtol=1e-13))
        np.testing.assert_allclose(flip_probabilities(batch), wanted, rtol=1e-9, atol=1e-12)


def check_dpo_pro():
    """The inner maximum against a search over the ball."""
    rng = random.Random(3)
    settings = SIGMOID | {"rule": "dpo_pro", "dpo_pro_rho": 0.3}
    for row in add_columns(random_rows("moderate", 60, rng), "dpo_pro", rng):
        batch, q = load([row], settings), row.get("soft_label", 1.0)
        grid = np.linspace(0.0, 1.0, 20_001)
        ball = grid[(grid - q) ** 2 <= 0.3 * q * (1 - q) + 1e-12]
        values = ball * batch.losses.item() + (1 - ball) * batch.swapped.item()
        assert abs(values.max() - dpo_pro_rule(batch)[0].item()) < 1e-3 * max(1.0, values.max())


def check_mmd():
    """The invariance term against a double loop over pairs and environments."""
    rng = random.Random(4)
    rows = add_columns(random_rows("moderate", 9, rng), "causal", rng)
    settings = SIGMOID | {"rule": "causal", "causal_prior": "uniform"}
    value = lambda strength: causal_rule(load(rows, settings | {"causal_lambda": strength}))[0].item()
    points = [[0.1 * (row[f"{b}_logps"] - row[f"ref_{b}_logps"]) for b in ("chosen", "rejected")] for row in rows]
    sigma = np.median([math.dist(points[i], points[j]) for i in range(9) for j in range(i)])
    count, apart = len(rows[0]["environments"]), []
    masses = [sum(row["environments"][e] for row in rows) for e in range(count)]
    for a, b in itertools.combinations(range(count), 2):
        c = [row["environments"][a] / masses[a] - row["environments"][b] / masses[b] for row in rows]
        kernel = lambda i, j: math.exp(-math.dist(points[i], points[j]) ** 2 / (2 * sigma**2))
        apart.append(sum(c[i] * c[j] * kernel(i, j) for i, j in itertools.product(range(9), repeat=2)))
    assert abs(value(1.0) - value(0.0) - sum(apart) / len(apart)) < 1e-12


def check_pair_losses():
    """The formulas above, averaged, against TRL's own code."""
    rows = random_rows("moderate", 12, random.Random(5))
    for settings in (SIGMOID, *OTHER_LOSSES):
        wanted = pair_cases.reference(settings, rows)[0]
        found = load(rows, settings | {"rule": "mean"}).losses.mean()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0)


def check_slopes(step=1e-5):
    """Where the derivative is that of the loss itself (Danskin, or no constants), central differences."""
    rng = random.Random(6)
    constant = {"kldpo, tau", "kldpo, official", "winsor", "group"}
    for label, rule in variants():
        if label in constant or (label == "causal" and "causal_bandwidth" not in rule):
            continue
        case = make_case(label, SIGMOID | rule, "moderate", 7, rng)
        directions = [rng.choice((-1.0, 1.0)) for _ in case.rows]
        slope = sum(d * row["d_chosen_logps"] for d, row in zip(directions, case.expect["rows"]))
        moved = lambda sign: [row | {"chosen_logps": row["chosen_logps"] + sign * step * d}
                              for row, d in zip(case.rows, directions)]
        high, low = (expectation(case.settings, moved(sign))["loss"] for sign in (1, -1))
        assert abs((high - low) / (2 * step) - slope) < 1e-7, (label, rule, (high - low) / (2 * step), slope)


def check_everything():
    """All checks of the references."""
    for check in (check_balls, check_sparsemax, check_flips, check_dpo_pro, check_mmd):
        check()
    check_pair_losses()
    check_slopes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    objective_cases.main(__doc__, goldens, fresh)
