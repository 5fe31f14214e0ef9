"""Golden values of LoRA adapters made by PEFT: log-probabilities and gradients, in float64.

    python scripts/parity/lora.py [case ...]

writes crates/seakeep/tests/golden/lora/<case>/: adapter_config.json and adapter_model.safetensors as PEFT's
save_pretrained writes them (on the tiny models of golden.py, `../../<model>`), golden.json (log-probabilities, losses) and
golden.safetensors (the gradient of every A and B, under PEFT's names, for DPO and for WDPO by double backward).

    python scripts/parity/lora.py --load DIR --rows ROWS

loads the adapter in DIR with PEFT on the base that it names and prints the log-probabilities of `rows`, a JSON file of
[prompt ids, completion ids], as a JSON list.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import common
import golden

OUT = golden.OUT / "lora"

CASES = {
    "llama": ("llama", dict(r=3, lora_alpha=6, target_modules="all-linear")),
    "llama_some": ("llama", dict(r=1, lora_alpha=2, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"])),
    "gpt2": ("gpt2", dict(r=2, lora_alpha=3, target_modules="all-linear", fan_in_fan_out=True)),
    "gpt_neox": ("gpt_neox", dict(r=2, lora_alpha=2, use_rslora=True, target_modules=["query_key_value", "dense"])),
    "llama_dora": ("llama", dict(r=2, lora_alpha=4, use_dora=True, target_modules="all-linear")),
    "gpt2_dora": ("gpt2", dict(r=2, lora_alpha=3, use_dora=True, target_modules="all-linear", fan_in_fan_out=True)),
}
OBJECTIVES = ("dpo", "wdpo_shared")


def adapted(base, settings, seed):
    """A PEFT model in float32 whose A and B are random and about as large as the weights; DoRA's magnitudes are some way off."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(golden.OUT / base, attn_implementation="eager", dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter * (1 + noise) if "magnitude" in name else noise)
    return peft.eval()


def saved_name(name):
    """PEFT's name of a parameter in its file; `name` is that within the causal model."""
    return "base_model.model." + name.replace("magnitude_vector.default.weight", "magnitude_vector").replace(".default.", ".")


def make(case, base, settings, seed):
    """Writes one case."""
    folder = OUT / case
    folder.mkdir(parents=True, exist_ok=True)
    peft = adapted(base, settings, seed)
    peft.peft_config["default"].base_model_name_or_path = f"../../{base}"
    peft.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    model = common.exact_float64(peft.base_model.model)
    record = json.loads((golden.OUT / base / "golden.json").read_text())
    pairs = record["pairs"]
    reference = torch.tensor([record["ref_logps"]["chosen"], record["ref_logps"]["rejected"]], dtype=torch.float64).T
    trained = {saved_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    # Frozen as it is, the penalty is a norm of gradients at the embeddings.
    model.get_input_embeddings().weight.requires_grad_(True)
    tensors, objectives = {}, {}
    for name in OBJECTIVES:
        forward = golden.Forward(model, pairs, golden.OBJECTIVES[name])
        loss, _ = golden.objective(name, forward, reference)
        grads = torch.autograd.grad(loss, list(trained.values()))
        norm = sum(grad.pow(2).sum() for grad in grads).sqrt().item()
        objectives[name] = {"loss": loss.item(), "grad_norm": norm}
        tensors |= {f"{name}/{n}": g.float().contiguous() for n, g in zip(trained, grads)}
    logps = forward.logps.detach()
    save_file(tensors, folder / "golden.safetensors")
    common.write_json(folder / "golden.json", {
        "base": base,
        "rho": golden.RHO,
        "policy_logps": {"chosen": logps[:, 0], "rejected": logps[:, 1]},
        "objectives": objectives,
    })
    print(case, objectives)


def load(directory, rows):
    """Prints the log-probabilities of rows under a saved adapter, as PEFT loads it."""
    base = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, directory).eval()
    values = []
    for prompt, completion in rows:
        with torch.no_grad():
            logits = peft(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        values.append(common.token_logps(logits.double(), completion).sum().item())
    print(json.dumps(values))


def main():
    """The cases named, or all; or an adapter to load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--load", type=Path)
    parser.add_argument("--rows", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.load:
        return load(arguments.load, json.loads(arguments.rows.read_text()))
    for seed, (case, (base, settings)) in enumerate(CASES.items(), start=31):
        if not arguments.cases or case in arguments.cases:
            make(case, base, settings, seed)


if __name__ == "__main__":
    main()
