"""PyTorch's side of the acceptance run: what each check should give."""

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

import common
import smollm2_data as source

BETA = 0.1
TAU = 0.05
TRAJECTORY = dict(steps=20, batch=2, max_length=256, learning_rate=1e-5)
PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in one sentence why the sky is blue.",
    "List three prime numbers greater than 10.",
)
NEW_TOKENS = 64


# ---------------------------------------------------------------------------------------------
# Log-probabilities
# ---------------------------------------------------------------------------------------------


def logps(folder, pairs):
    """[chosen, rejected] log-probs of every pair under a saved model, in float64."""
    model = source.load_float64(folder)
    return [list(common.branch_logps(model, pair)) for pair in pairs]


# ---------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------


def gradient_numbers(base, policy, pairs):
    """What every objective's loss and gradient norm on one batch are made of.

    With G the gradient of the mean loss and P the gradient of the mean penalty g, WDPO's gradient
    is G + c P for a scalar c, so its norm for any rho and form follows from |G|, |P| and G.P.
    """
    reference = [list(common.branch_logps(source.load_float64(base), pair)) for pair in pairs]
    model = source.load_float64(policy)
    own = [list(common.branch_logps(model, pair)) for pair in pairs]
    margins = [(p[0] - r[0]) - (p[1] - r[1]) for p, r in zip(own, reference)]
    losses = common.dpo_losses(torch.tensor(margins, dtype=torch.float64), BETA)
    numbers = {"margins": margins, "losses": losses.tolist(), "policy": own, "reference": reference}

    weights = common.kldpo_weights(losses, TAU)
    gradient = loss_gradient(model, pairs, margins, weights.tolist())
    numbers["kldpo"] = {"weights": weights.tolist(), "loss": (weights * losses).sum().item(), "norm": norm(gradient)}
    mean_gradient = loss_gradient(model, pairs, margins, [1.0 / len(pairs)] * len(pairs))
    numbers["dpo"] = {"loss": losses.mean().item(), "norm": norm(mean_gradient)}
    for name in ("shared", "separate"):
        penalties, gradient = penalty_gradient(model, pairs, margins, name == "shared")
        product = sum((a * b).sum().item() for a, b in zip(mean_gradient, gradient))
        numbers[name] = {"g": penalties, "norm": norm(gradient), "product": product}
    return numbers


def loss_gradient(model, pairs, margins, weights):
    """Gradients of `sum weights_i l_i`, weights constant, one tensor a parameter."""
    model.zero_grad()
    for pair, margin, weight in zip(pairs, margins, weights):
        slope = -BETA * torch.sigmoid(torch.tensor(-BETA * margin, dtype=torch.float64)).item()
        common.accumulate_loss_gradient(model, pair, weight * slope)
    return taken_gradients(model)


def penalty_gradient(model, pairs, margins, shared):
    """(g_i of every pair, gradients of their mean)."""
    model.zero_grad()
    penalties = []
    for pair, margin in zip(pairs, margins):
        penalties.append(common.accumulate_penalty_gradient(model, pair, margin, BETA, shared))
    gradient = taken_gradients(model)
    return penalties, [tensor / len(pairs) for tensor in gradient]


def taken_gradients(model):
    """The accumulated gradients, taken away from the model."""
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    return gradients


def norm(gradients):
    """l2 norm over all tensors."""
    return sum(tensor.pow(2).sum().item() for tensor in gradients) ** 0.5


def wdpo(numbers, rho, prompt_gradient, form):
    """(loss, gradient norm) of WDPO from `gradient_numbers`."""
    part, dpo = numbers[prompt_gradient], numbers["dpo"]
    mean = sum(part["g"]) / len(part["g"])
    factor = rho if form == "official" else rho / (2 * mean**0.5)
    penalty = rho * mean if form == "official" else rho * mean**0.5
    squared = dpo["norm"] ** 2 + 2 * factor * part["product"] + factor**2 * part["norm"] ** 2
    return dpo["loss"] + penalty, squared**0.5


# ---------------------------------------------------------------------------------------------
# Trajectory
# ---------------------------------------------------------------------------------------------


def trajectory(base, tokenizer, rows, scratch, dtype=torch.float32):
    """TRL's log of its DPO steps: loss, gradient norm and reward margin of each."""
    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    config = DPOConfig(
        output_dir=str(scratch),
        beta=BETA,
        learning_rate=TRAJECTORY["learning_rate"],
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        max_steps=TRAJECTORY["steps"],
        max_length=TRAJECTORY["max_length"],
        per_device_train_batch_size=TRAJECTORY["batch"],
        gradient_accumulation_steps=1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        optim="adamw_torch",
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(
        model=load(),
        ref_model=load(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    return [{key: entry[key] for key in ("loss", "grad_norm", "rewards/margins", "learning_rate")} for entry in steps]


# ---------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------


def generations(base, tokenizer):
    """Greedy tokens of transformers.generate in float64 for each prompt, EOS left out, and the text."""
    model = source.load_float64(base)
    made = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tops = torch.cat(out.logits).topk(2).values
        tokens = [t for t in out.sequences[0, ids.shape[1] :].tolist() if t != tokenizer.eos_token_id]
        made.append({
            "prompt": prompt,
            "tokens": tokens,
            "text": tokenizer.decode(tokens),
            "smallest_lead": (tops[:, 0] - tops[:, 1]).min().item(),
        })
    return made
