"""Golden values for `generate`'s filters: the probabilities that transformers' own processors leave.

    python scripts/parity/sampling.py > crates/seakeep/tests/golden/sampling.json

Processors run in the order of `GenerationMixin._get_logits_processor`: repetition penalty, minimal length,
temperature, top-k, top-p, min-p; in float64, from logits that float32 holds.
"""

import json

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB = 48
PROMPT = 3

CASES = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.6, "top_k": 7},
    {"top_p": 0.8},
    {"top_p": 0.35, "temperature": 1.3},
    {"min_p": 0.1},
    {"min_p": 0.3, "temperature": 2.0},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.6, "top_k": 5},
    {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "min_new_tokens": 9},
    {"min_new_tokens": 9, "top_k": 3},
    {"min_new_tokens": 2, "top_k": 3},
]


def processors(case, eos):
    """transformers' processors for a case, in its order."""
    built = LogitsProcessorList()
    if "repetition_penalty" in case:
        built.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "min_new_tokens" in case:
        built.append(MinNewTokensLengthLogitsProcessor(PROMPT, case["min_new_tokens"], eos))
    if "temperature" in case:
        built.append(TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        built.append(TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        built.append(TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        built.append(MinPLogitsWarper(case["min_p"]))
    return built


def main():
    """Print the cases."""
    generator = torch.Generator().manual_seed(11)
    out = []
    for case in CASES:
        logits = (2.0 * torch.randn(VOCAB, generator=generator)).round(decimals=3).float()
        text = torch.randint(0, VOCAB, (8,), generator=generator)
        # The likeliest token ends texts, and a token of the text is likely.
        eos = [int(logits.argmax())]
        text[1] = int(logits.topk(2).indices[1])
        left = processors(case, eos)(text[None], logits[None].double())[0].softmax(-1)
        kept = {int(t): round(float(left[t]), 12) for t in left.nonzero()[:, 0]}
        out.append({
            "options": case, "logits": [round(float(z), 3) for z in logits], "text": text.tolist(),
            "generated": len(text) - PROMPT, "eos": eos, "kept": kept,
        })
    print("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]")


if __name__ == "__main__":
    main()
