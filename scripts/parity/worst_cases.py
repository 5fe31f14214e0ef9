"""Worst cases of the mean over balls around the data, by a convex solver.

    python scripts/parity/worst_cases.py        # writes crates/seakeep/tests/golden/worst_cases.json

Each is the primal problem itself, sup { sum p_i l_i : p in the ball }, in cvxpy with Clarabel; the program solves duals or
sorts. Vectors of losses and of errors (0 or 1), with ties, one value far off, all values equal.
"""

import json
import math
import random
import warnings
from pathlib import Path

import cvxpy

OUT = Path(__file__).parents[2] / "crates/seakeep/tests/golden/worst_cases.json"
RADII = {
    "kl": [0.0, 0.01, 0.1, 0.5, 1.5, 6.0],
    "chi2": [0.0, 0.01, 0.2, 1.0, 4.0, 50.0],
    "cvar": [1.0, 0.7, 0.35, 0.1, 0.01],
    "tv": [0.0, 0.05, 0.3, 0.85, 1.0],
}


def constraint(ball, rho, p, n):
    """The ball of radius rho around the uniform distribution."""
    match ball:
        case "kl":
            return [cvxpy.sum(cvxpy.rel_entr(p, [1 / n] * n)) <= rho]
        case "chi2":
            return [n * cvxpy.sum_squares(p - 1 / n) <= rho]
        case "cvar":
            return [p <= 1 / (rho * n)]
        case "tv":
            return [0.5 * cvxpy.norm1(p - 1 / n) <= rho]


def worst(ball, rho, losses):
    """sup { sum p_i l_i : p in the ball }"""
    if rho == (1.0 if ball == "cvar" else 0.0):
        return sum(losses) / len(losses)  # A ball of one point, which an interior-point solver does not like.
    p = cvxpy.Variable(len(losses), nonneg=True)
    problem = cvxpy.Problem(cvxpy.Maximize(p @ losses), [cvxpy.sum(p) == 1, *constraint(ball, rho, p, len(losses))])
    for tolerance in (1e-11, 1e-10, 1e-9, 1e-8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That a tolerance was not reached: then the next.
            problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
        if problem.status == "optimal":
            return problem.value
    raise RuntimeError(f"{ball} {rho} {losses}: {problem.status}")


def vectors():
    """Losses to try."""
    rng = random.Random(7)
    softplus = lambda z: math.log1p(math.exp(-abs(z))) + max(-z, 0.0)
    for n, scale in [(2, 1.0), (5, 0.3), (9, 3.0), (16, 1.0), (40, 0.1)]:
        yield [softplus(rng.gauss(0.3, scale)) for _ in range(n)]
    tied = [softplus(rng.gauss(0.0, 2.0)) for _ in range(4)]
    yield tied + tied[:3] + [max(tied)] * 2
    yield [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    yield [1.0] + [0.0] * 11
    yield [math.log(2)] * 6
    yield [0.1, 0.2, 0.15, 30.0, 0.3, 0.05, 0.12]


def main():
    """Solves and writes."""
    cases = [
        {"losses": losses, "worst": {ball: [[rho, worst(ball, rho, losses)] for rho in radii] for ball, radii in RADII.items()}}
        for losses in ([float(f"{x:.12g}") for x in vector] for vector in vectors())
    ]
    OUT.write_text(json.dumps(cases) + "\n")
    print(f"{OUT}: {sum(len(radii) for radii in RADII.values()) * len(cases)} worst cases")


if __name__ == "__main__":
    main()
