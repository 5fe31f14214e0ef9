"""What the parity scripts share: exact float64 models, log-probabilities, objectives.

Notation as in OBJECTIVES.md: log-probabilities are sums over completion tokens in nats, h is the
log-ratio margin, l the pair loss, tau, rho and beta as there.
"""

import json
import math
import types

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

# ---------------------------------------------------------------------------------------------
# Models in float64. transformers computes RMSNorm, rotary angles and the attention softmax in
# float32 whatever the model's dtype; here they are replaced by their float64 twins.
# ---------------------------------------------------------------------------------------------


def attention_float64(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """transformers' eager attention with the softmax in the query's own dtype."""
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("float64", attention_float64)
AttentionMaskInterface.register("float64", eager_mask)


def rms_norm_float64(self, x):
    """RMSNorm without the detour through float32."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_float64(self, x, position_ids):
    """Rotary cosines and sines from transformers' own (float32) inverse frequencies, in float64."""
    angles = position_ids[..., None].double() * self.inv_freq.double()
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def exact_float64(model):
    """Convert a transformers causal LM, in place, to one that computes everything in float64."""
    model.set_attn_implementation("float64")
    model.double().eval()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = types.MethodType(rms_norm_float64, module)
        elif kind.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(rotary_float64, module)
    return model


# ---------------------------------------------------------------------------------------------
# Log-probabilities
# ---------------------------------------------------------------------------------------------


def completion_logits(model, embeds, completion_length):
    """Logits [n, V] that predict the last n tokens of one sequence, from its embeddings [T, C]."""
    hidden = model.base_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]
    return model.get_output_embeddings()(hidden[-completion_length - 1 : -1])


def token_logps(logits, completion):
    """Log-probabilities [n] of the completion's tokens under logits [n, V]."""
    ids = torch.as_tensor(completion)[:, None]
    return logits.log_softmax(-1).gather(1, ids)[:, 0]


def embed(model, ids):
    """Input embeddings [T, C]: the lookup alone, before any learned position is added."""
    return model.get_input_embeddings()(torch.as_tensor(ids))


@torch.no_grad()
def greedy(model, prompt, count):
    """`count` greedy tokens after `prompt`, by whole forward passes; also the smallest lead.

    The lead is the logit distance between the first and the second choice: the choice is safe
    against rounding while it is large.
    """
    ids, lead = list(prompt), math.inf
    for _ in range(count):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        top = logits.topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[len(prompt) :], lead


# ---------------------------------------------------------------------------------------------
# Objectives (OBJECTIVES.md), each on float64 tensors
# ---------------------------------------------------------------------------------------------


def dpo_losses(margins, beta, label_smoothing=0.0):
    """DPO pair losses [n] of the log-ratio margins h [n]; label smoothing as TRL has it."""
    z = beta * margins
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def kldpo_weights(losses, tau):
    """The worst case over the KL ball at temperature tau: softmax(l / tau), constant [n]."""
    return (losses.detach() / tau).softmax(0)


def kldpo_official_weights(losses, tau):
    """The authors' weights: min(exp((l - mean l) / tau), 10), not normalised, constant [n]."""
    losses = losses.detach()
    return ((losses - losses.mean()) / tau).exp().clamp(max=10.0)


def kl_from_uniform(losses, tau):
    """KL(P || uniform) of the weights at temperature tau, in nats."""
    log_p = (losses / tau).log_softmax(0)
    return (log_p.exp() * (log_p + math.log(len(losses)))).sum().item()


def kldpo_tau_of_rho(losses, rho):
    """The tau whose weights lie at KL distance rho from uniform, by bisection on log tau.

    That tau minimises the dual `tau rho + tau log mean exp(l / tau)`: its derivative in tau is
    rho - KL. KL falls as tau grows. Needs 0 < rho < log n and losses that are not all equal.
    """
    losses = losses.detach()
    low, high = math.log(1e-12), math.log(1e12)
    for _ in range(200):
        middle = (low + high) / 2
        if kl_from_uniform(losses, math.exp(middle)) > rho:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def dual_value(losses, tau, rho):
    """`tau rho + tau log mean exp(l / tau)`."""
    log_mean = torch.logsumexp(losses.detach() / tau, 0) - math.log(len(losses))
    return tau * rho + tau * log_mean.item()


def effective_size(weights):
    """Effective sample size `1 / sum P^2`."""
    return 1.0 / (weights**2).sum().item()


# ---------------------------------------------------------------------------------------------
# The input-gradient penalty, one branch at a time: what fits in memory for a real model
# ---------------------------------------------------------------------------------------------


def branch_logp(model, prompt, completion):
    """(log-prob of the completion, the sequence's input embeddings [T, C]), differentiable."""
    embeds = embed(model, prompt + completion)
    logits = completion_logits(model, embeds, len(completion))
    return token_logps(logits, completion).sum(), embeds


def branch_logps(model, pair):
    """(chosen, rejected) log-probs of one pair, as numbers."""
    with torch.no_grad():
        return tuple(branch_logp(model, pair["prompt"], pair[b])[0].item() for b in ("chosen", "rejected"))


def accumulate_loss_gradient(model, pair, d_margin):
    """Add `d_margin` times the gradient of the pair's margin h to the parameters' `.grad`."""
    for branch, sign in (("chosen", 1.0), ("rejected", -1.0)):
        logp, _ = branch_logp(model, pair["prompt"], pair[branch])
        (sign * d_margin * logp).backward()


def embedding_gradients(model, pair):
    """d log-prob / d e [T, C] of the chosen and of the rejected sequence, detached."""
    made = []
    for branch in ("chosen", "rejected"):
        logp, embeds = branch_logp(model, pair["prompt"], pair[branch])
        made.append(torch.autograd.grad(logp, embeds)[0])
    return made


def penalty_cotangents(chosen, rejected, prompt_length, shared):
    """(squared norm of dh/de, the cotangents [T, C] of both branches' embedding gradients).

    dh/de is the difference of the branches over a shared prompt, and each branch's own elsewhere;
    half the norm's derivative in a branch's embedding gradient is what the branch is paired with.
    """
    if not shared:
        return (chosen.pow(2).sum() + rejected.pow(2).sum()).item(), (chosen, -rejected)
    prompt = chosen[:prompt_length] - rejected[:prompt_length]
    own_chosen, own_rejected = chosen[prompt_length:], rejected[prompt_length:]
    norm = sum(part.pow(2).sum() for part in (prompt, own_chosen, own_rejected)).item()
    return norm, (torch.cat([prompt, own_chosen]), torch.cat([prompt, -own_rejected]))


def accumulate_penalty_gradient(model, pair, margin, beta, shared):
    """Add the gradient of g = ||dl/de||^2 to the parameters' `.grad`; returns g.

    g = s^2 ||dh/de||^2 with s = dl/dh, so dg = 2 s s' ||dh/de||^2 dh + 2 s^2 <dh/de, d(dh/de)>.
    """
    sigmoid = 1.0 / (1.0 + math.exp(-beta * margin))
    slope, curvature = -beta * (1.0 - sigmoid), beta**2 * sigmoid * (1.0 - sigmoid)
    grads = embedding_gradients(model, pair)
    norm, cotangents = penalty_cotangents(*grads, len(pair["prompt"]), shared)
    for branch, sign, cotangent in zip(("chosen", "rejected"), (1.0, -1.0), cotangents):
        logp, embeds = branch_logp(model, pair["prompt"], pair[branch])
        (grad,) = torch.autograd.grad(logp, embeds, create_graph=True)
        inner = 2 * slope**2 * (grad * cotangent).sum()
        (sign * (2 * slope * curvature * norm * logp + inner)).backward()
    return slope**2 * norm


# ---------------------------------------------------------------------------------------------
# Small things
# ---------------------------------------------------------------------------------------------


def rounded(value, digits=10):
    """`value` (nested lists and dicts, tensors) with floats at `digits` significant digits."""
    if isinstance(value, torch.Tensor):
        return rounded(value.tolist(), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value


def write_json(path, value, digits=10):
    """Write JSON a person can open: one key a line at the outer two levels, lists on one line."""
    path.write_text(pretty(rounded(value, digits)) + "\n")


def pretty(value, depth=0):
    """JSON text with the outer levels spread over lines and innermost containers on one."""
    nested = isinstance(value, (dict, list)) and any(isinstance(v, (dict, list)) for v in
                                                     (value.values() if isinstance(value, dict) else value))
    if not nested or depth > 4:
        return json.dumps(value)
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(k)}: {pretty(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(body) + "\n" + " " * depth + "}"
    body = [pad + pretty(v, depth + 1) for v in value]
    return "[\n" + ",\n".join(body) + "\n" + " " * depth + "]"
