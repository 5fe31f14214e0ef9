"""Floating-point operations that a step cannot do without, from the lengths of its pairs. A multiply-add is two.

Counted are products: of every linear layer for every position of prompt, chosen and rejected (the prompt once), of
attention for the keys that a query sees, and of the vocabulary projection for the rows that predict a completion's
token. Not counted is what is computed a second time to save memory, and whatever is not a product.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What decides the operations of a Llama-like decoder."""

    layers: int
    hidden: int
    heads: int
    kv: int
    head: int
    intermediate: int
    vocab: int

    @property
    def linear(self):
        """Weights of all linear layers but the vocabulary projection."""
        attention = 2 * self.hidden * self.heads * self.head + 2 * self.hidden * self.kv * self.head
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


SMOLLM2 = Shape(layers=30, hidden=576, heads=9, kv=3, head=64, intermediate=1536, vocab=49_152)

DPO = 3
"""Products of a linear layer in a step: forward, gradients of inputs and of weights."""
REFERENCE = 1
"""Products of a linear layer in the reference's pass."""


def positions(pair):
    """Rows of a pair [prompt, chosen, rejected] with its prompt once."""
    return sum(pair)


def predictions(pair):
    """Rows that predict a token."""
    return pair[1] + pair[2]


def seen(pair):
    """(query, key) pairs of a head: the prompt sees itself, a completion the prompt and itself."""
    prompt, *completions = pair
    return triangle(prompt) + sum(n * prompt + triangle(n) for n in completions)


def triangle(n):
    """1 + 2 + ... + n."""
    return n * (n + 1) // 2


def attention(pair, shape, products=DPO):
    """Operations of attention: two products (scores, mixing) forward, twice that backward."""
    return products * 2 * 2 * shape.heads * shape.head * shape.layers * seen(pair)


def operations(pairs, shape, products=DPO):
    """Necessary operations of one pass (1) or step (3) over pairs."""
    dense = sum(positions(p) * shape.linear + predictions(p) * shape.hidden * shape.vocab for p in pairs)
    return products * 2 * dense + sum(attention(p, shape, products) for p in pairs)
