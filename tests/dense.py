"""The dense formulas of the method, written independently of the package: sparse numbers are compared with them."""

import torch
import torch.nn.functional as F  # noqa: N812

# preset -> (anchor, negative, adaptive strength); beta, gain and kl_coef are given
PRESETS = {
    "linear": ("reference", "reference", False),
    "contrastive": ("dpo", "reverse", False),
    "adaptive": ("reference", "reference", True),
    "aligndistil": ("dpo", "reverse", True),
}


def teacher(logprobs, anchor, negative, adaptive, *, beta=0.1, gain=10.0, kl_coef=0.05):
    """(log p* (N, V), lambda (N,)) from role -> log-probs (N, V)."""
    distance = (logprobs["dpo"].exp() - logprobs[negative].exp()).abs().sum(-1)
    w = gain * distance + 1e-3 if adaptive else torch.full_like(distance, beta / kl_coef)
    logits = logprobs[anchor] + w[:, None] * (logprobs["dpo"] - logprobs[negative])
    weight = beta / w if adaptive else torch.full_like(w, kl_coef)
    return F.log_softmax(logits, -1), weight


def divergence(name, student, target, jsd_weight=0.5):
    """Divergence of each position, (N,), between log-probs (N, V)."""
    p, q = student.exp(), target.exp()
    if name == "reverse_kl":
        return (p * (student - target)).sum(-1)
    if name == "forward_kl":
        return (q * (target - student)).sum(-1)
    mixture = (jsd_weight * q + (1 - jsd_weight) * p).log()
    return (jsd_weight * q * (target - mixture) + (1 - jsd_weight) * p * (student - mixture)).sum(-1)


def response_logprobs(model, response, vocabulary_size):
    """Log-probs (N, V) at the response positions of one cached row, from the model's own logits, without padding."""
    ids = torch.from_numpy(response.input_ids.astype("int64"))[None]
    logits = model(input_ids=ids).logits[0, :, :vocabulary_size]
    position = torch.from_numpy(response.loss_mask.nonzero()[0]) - 1
    return F.log_softmax(logits[position].to(torch.promote_types(logits.dtype, torch.float32)), -1)


def loss(student, trio, responses, vocabulary_size, *, preset, name="reverse_kl", reduction="sequence", **numbers):
    """(loss, smallest divergence mean of a row) over responses with live models."""
    sums, counts, kls = [], [], []
    for response in responses:
        with torch.no_grad():
            live = {role: response_logprobs(model, response, vocabulary_size) for role, model in trio.items()}
        target, weight = teacher(live, *PRESETS[preset], **numbers)
        values = divergence(name, response_logprobs(student, response, vocabulary_size), target)
        sums.append((weight * values).sum())
        counts.append(len(values))
        kls.append(values.detach().mean())
    if reduction == "sequence":
        total = torch.stack([s / n for s, n in zip(sums, counts, strict=True)]).mean()
    else:
        total = torch.stack(sums).sum() / sum(counts)
    return total, min(kls)


def gradient(loss_value, model):
    """All gradients of the model's parameters as one vector; zeros for parameters without a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss_value, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def angle_degrees(a, b):
    # atan2 of the two half-sums: exact for small angles, unlike the acos of a cosine
    a, b = a.double() / a.double().norm(), b.double() / b.double().norm()
    return float(torch.rad2deg(2 * torch.atan2((a - b).norm(), (a + b).norm())))
