"""Golden optima for `seakeep::theory`, by other algorithms: conic programs (cvxpy with Clarabel) and scipy.

    python scripts/parity/theory.py     # writes crates/seakeep/tests/golden/theory.json

DPO, KLDPO, WDPO and chi-square are convex: their duals are given to Clarabel as they stand, theta and the dual variable
together, once with the ball |theta| <= B inactive and once active. The worst cases over the balls are maximised
directly over the distributions, without any dual. The gradient penalty and Dr. DPO are not convex: scipy's BFGS from DPO's
optimum, with numerical polish.
"""

import json
from pathlib import Path

import cvxpy as cp
import numpy as np
from scipy.optimize import minimize

OUT = Path(__file__).parents[2] / "crates/seakeep/tests/golden/theory.json"
BETA, KL, WASSERSTEIN, CHI2, DRDPO = 0.8, 0.02, 0.05, 0.05, 4.0
TIGHT = dict(tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)


def losses(x, w):
    return cp.logistic(-BETA * (x @ w))


def solve(problem):
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    assert problem.status in ("optimal", "optimal_inaccurate"), problem.status
    return float(problem.value)


def convex(name, x, p, reference, bound):
    d = x.shape[1]
    w = cp.Variable(d)
    inside = [cp.norm(w + reference) <= bound]
    l = losses(x, w)
    if name == "dpo":
        problem = cp.Problem(cp.Minimize(p @ l), inside)
    elif name == "wdpo":
        problem = cp.Problem(cp.Minimize(p @ l + WASSERSTEIN * BETA * cp.norm(w)), inside)
    elif name == "kldpo":
        # t >= tau log sum p exp(l / tau) as sum p u <= tau with tau exp((l - t) / tau) <= u.
        tau, t, u, s = cp.Variable(nonneg=True), cp.Variable(), cp.Variable(len(p)), cp.Variable(len(p))
        cone = [cp.ExpCone(s - t, tau * np.ones(len(p)), u), l <= s, p @ u <= tau]
        problem = cp.Problem(cp.Minimize(tau * KL + t), inside + cone)
    else:
        eta = cp.Variable()
        size = cp.norm(cp.multiply(np.sqrt(p), cp.pos(l - eta)))
        problem = cp.Problem(cp.Minimize(eta + np.sqrt(1 + CHI2) * size), inside)
    value = solve(problem)
    return w.value + reference, value


def smooth(name, x, p, reference, start):
    def objective(theta):
        w = theta - reference
        z = BETA * (x @ w)
        l, s = np.logaddexp(0, -z), 1 / (1 + np.exp(z))
        if name == "drdpo":
            q = p * np.exp(-l / DRDPO)
            total = q.sum()
            return -DRDPO * np.log(total), -BETA * x.T @ (q / total * s)
        r, length = np.sqrt(p @ s**2), np.linalg.norm(w)
        dr = -BETA * x.T @ (p * s * s * (1 - s)) / r
        scale = WASSERSTEIN * BETA
        return p @ l + scale * length * r, -BETA * x.T @ (p * s) + scale * (r * w / length + length * dr)

    found = minimize(objective, start, jac=True, method="BFGS", options=dict(gtol=1e-12, maxiter=10_000))
    assert np.linalg.norm(found.jac) < 1e-8, found
    return found.x, float(found.fun)


def worst(name, l, p):
    """Directly over the distributions of the ball."""
    q = cp.Variable(len(p), nonneg=True)
    if name == "kldpo":
        ball = cp.sum(cp.kl_div(q, p)) <= KL
    else:
        ball = cp.sum_squares(cp.multiply(1 / np.sqrt(p), q - p)) <= CHI2
    return solve(cp.Problem(cp.Maximize(l @ q), [cp.sum(q) == 1, ball]))


def main():
    rng = np.random.default_rng(3)
    n, d = 40, 3
    reference = np.array([0.2, -0.1, 0.3])
    truth = reference + np.array([1.2, -0.8, 0.5])
    x = rng.normal(size=(n, d))
    x /= np.maximum(1, np.linalg.norm(x, axis=1) / 2)[:, None]
    wins = rng.random(n) < 1 / (1 + np.exp(-BETA * x @ (truth - reference)))
    x = np.where(wins[:, None], x, -x).round(6)
    p = rng.integers(1, 6, size=n).astype(float)
    p /= p.sum()
    cases = []
    for bound in (50.0, 0.6):
        start, _ = convex("dpo", x, p, reference, bound)
        for name in ("dpo", "kldpo", "wdpo", "chi2"):
            theta, value = convex(name, x, p, reference, bound)
            cases.append(dict(name=name, bound=bound, theta=theta.tolist(), value=value))
        if bound > 1:
            for name in ("wdpo_gradient", "drdpo"):
                theta, value = smooth(name, x, p, reference, start)
                cases.append(dict(name=name, bound=bound, theta=theta.tolist(), value=value))
    at = np.array([0.9, -0.4, 0.6])
    l = np.logaddexp(0, -BETA * x @ at)
    balls = [dict(name=name, value=worst(name, l, p)) for name in ("kldpo", "chi2")]
    radii = dict(kldpo=KL, wdpo=WASSERSTEIN, wdpo_gradient=WASSERSTEIN, chi2=CHI2, drdpo=DRDPO, dpo=0.0)
    data = dict(beta=BETA, radii=radii, reference=reference.tolist(), x=x.tolist(), masses=p.tolist(),
                cases=cases, offset=at.tolist(), worst_cases=balls)
    text = json.dumps(data)
    OUT.write_text(text + "\n")
    for case in cases + balls:
        print(case)


main()
