"""Reward models as transformers and TRL have them: crates/seakeep/tests/golden/reward.json.

    python scripts/parity/reward.py                     # write the golden values
    python scripts/parity/reward.py --score DIR < IDS   # logits of a saved model (JSON lists of token ids on stdin)

The backbones are those of golden.py's cases; each gets a head, read here and there from the same numbers. Losses are
transformers' own (`labels=`) and TRL's RewardTrainer formula; gradients are float64. Recorded besides: names and shapes of
the tensors that `save_pretrained` writes, so that the layout on disk is compared and not only the arithmetic.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import common

GOLDEN = Path(__file__).parents[2] / "crates/seakeep/tests/golden"
CASES = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"]
PAD = 0
TEXTS = [[5, 9, 2, 31, 7], [17, 3], [8, 8, 30, 0, 12, 39, 0, 0], [21, 4, 11, 6]]
"""The third has the padding token inside and at its end: its last token that counts is 39."""
LABELS = [[1.0, 0.0, 0.25], [0.0, 1.0, 1.0], [0.5, 0.0, 0.0], [1.0, 1.0, 0.0]]
UNKNOWN = [(0, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
NUMBERS = [[0.5, -1.5, 2.0], [0.1, 0.2, 0.3], [3.0, 0.0, -1.0], [1.0, 1.0, 1.0]]
CLASSES = [2, 0, 1, 1]
MARGINS = [0.0, 0.75]
HEADER = 38
"""In the tests' tokenizer the whole header of the assistant's turn is this one token."""
CENTER = 0.05


def build(case, labels, problem_type=None):
    """A float64 classifier on the case's backbone, its head and what would be saved."""
    torch.manual_seed(len(case) + labels)
    model = AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / case, num_labels=labels, problem_type=problem_type, pad_token_id=PAD)
    head = torch.randn(labels, model.config.hidden_size).mul(0.5)
    with torch.no_grad():
        model.score.weight.copy_(head)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = {name: list(t.shape) for name, t in load_file(Path(folder) / "model.safetensors").items()}
    return common.exact_float64(model), head.tolist(), saved


def logits_of(model, texts):
    """One text at a time: no padding but the texts' own."""
    return torch.cat([model(torch.tensor([ids])).logits for ids in texts])


def fingerprint(tensor):
    """[l2 norm, dot with cos(0.37 (k + 1)) over the row-major elements], as golden.py."""
    flat = tensor.flatten()
    probe = torch.cos(0.37 * torch.arange(1, len(flat) + 1, dtype=torch.float64))
    return [flat.norm().item(), flat.dot(probe).item()]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: fingerprint(p.grad) for name, p in model.named_parameters()}


def record(case):
    """One family."""
    out = {"texts": TEXTS}
    model, out["head"], out["saved"] = build(case, 3)
    logits = logits_of(model, TEXTS)
    out["logits"] = logits.tolist()
    known = torch.ones(len(LABELS), 3, dtype=torch.float64)
    for row, label in UNKNOWN:
        known[row, label] = 0.0
    labels = torch.tensor(LABELS, dtype=torch.float64)
    partial = (F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * known).sum() / known.sum()
    out["partial"] = {"loss": partial.item(), "tensors": gradients(model, partial)}
    for problem, targets in [
        ("multi_label_classification", labels),
        ("regression", torch.tensor(NUMBERS, dtype=torch.float64)),
        ("single_label_classification", torch.tensor(CLASSES)),
    ]:
        model.config.problem_type = problem
        # Its own loss, of equally long texts: these without the padded one, cut to two tokens.
        ids = torch.tensor([[5, 9], [17, 3], [21, 4]])
        keep = torch.tensor([0, 1, 3])
        out[problem] = {"loss": model(ids, labels=targets[keep]).loss.item()}
    pairs, out["pair_head"], _ = build(case, 1)
    rewards = logits_of(pairs, TEXTS)[:, 0]
    chosen, rejected = rewards[[0, 2]], rewards[[1, 3]]
    margin = torch.tensor(MARGINS, dtype=torch.float64)
    loss = -F.logsigmoid(chosen - rejected - margin).mean() + CENTER * ((chosen + rejected) ** 2).mean()
    out["bradley_terry"] = {"loss": loss.item(), "tensors": gradients(pairs, loss)}
    return out


def gated():
    """ArmoRM's shape on the tiny Llama, from the formula of its model card and code: a regression layer on the last hidden
    state, a ReLU network on the one where the assistant's header begins, softmax(x / T) times a scale."""
    torch.manual_seed(5)
    model, _, _ = build("llama", 1)
    hidden, objectives, inner, temperature = model.config.hidden_size, 5, 6, 10.0
    draw = lambda *shape: torch.randn(*shape).mul(0.7)
    sizes = [(inner, hidden), (inner, inner), (inner, inner), (objectives, inner)]
    tensors = {"regression_layer.weight": draw(objectives, hidden), "gating.logit_scale": torch.tensor([1.25]),
               "reward_transform_matrix": torch.eye(objectives) + 0.3 * draw(objectives, objectives)}
    for i, (outputs, inputs) in enumerate(sizes):
        tensors |= {f"gating.layers.{i}.weight": draw(outputs, inputs), f"gating.layers.{i}.bias": draw(outputs)}
    exact = {name: t.double() for name, t in tensors.items()}
    texts = [[5, 9, HEADER, 31, 7], [HEADER, 3, 4, HEADER, 8, 8, 30], [2, HEADER]]
    rewards, scores = [], []
    for ids in texts:
        states = model.model(torch.tensor([ids])).last_hidden_state[0]
        reward = exact["regression_layer.weight"] @ states[-1]
        x = states[max(i for i, token in enumerate(ids) if token == HEADER)]
        for i in range(len(sizes)):
            x = exact[f"gating.layers.{i}.weight"] @ x + exact[f"gating.layers.{i}.bias"]
            x = F.relu(x) if i < len(sizes) - 1 else x
        weights = F.softmax(x / temperature, dim=0) * exact["gating.logit_scale"][0]
        rewards.append(reward.tolist())
        scores.append((weights * (reward @ exact["reward_transform_matrix"])).sum().item())
    flat = {name: {"shape": list(t.shape), "values": t.flatten().tolist()} for name, t in tensors.items()}
    return {"temperature": temperature, "header": HEADER, "tensors": flat, "texts": texts, "rewards": rewards, "scores": scores}


def score(directory):
    """Logits of a saved model, in float32 as transformers has it, each text alone and all padded together."""
    texts = json.load(sys.stdin)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        alone = logits_of(model, texts).tolist()
        longest = max(map(len, texts))
        ids = torch.tensor([t + [model.config.pad_token_id] * (longest - len(t)) for t in texts])
        mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts])
        padded = model(ids, attention_mask=mask).logits.tolist()
    config = model.config
    print(json.dumps({
        "class": type(model).__name__, "logits": alone, "padded": padded, "num_labels": config.num_labels,
        "id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type,
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--score", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.score:
        return score(arguments.score)
    common.write_json(GOLDEN / "reward.json", {
        "pad": PAD, "labels": LABELS, "unknown": UNKNOWN, "numbers": NUMBERS, "classes": CLASSES,
        "margins": MARGINS, "center": CENTER, "gated": gated(),
        "cases": {case: record(case) for case in CASES},
    })


if __name__ == "__main__":
    main()
