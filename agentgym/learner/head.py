"""From hidden states to log-probs and entropy, at the tokens of the loss only and in chunks.

Owns the only place where the learner touches the vocabulary: float32, temperature inside. What a chunk's logits were
is computed again in the backward pass rather than kept, so that memory does not grow with tokens x vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentgym.engines.causal import CausalLM, float_matmul

CHUNK_CELLS = 1 << 25  # logits held at once: tokens x vocabulary


def logp_and_entropy(
    lm: CausalLM, hidden: Tensor, targets: Tensor, temperature: float, *, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """hidden [N, width], targets [N] int64 -> log p(target) [N] and entropy [N] in nats, float32, of the distribution
    at that temperature. The entropy has a gradient only with `entropy_grad`."""
    chunk = max(1, CHUNK_CELLS // lm.vocab_size)
    head = lm.linear_head
    if head is not None and (len(targets) > chunk or hidden.device.type != "cpu"):
        return _Chunked.apply(hidden, head.weight, head.bias, targets, temperature, chunk)  # type: ignore[return-value]
    logp = torch.log_softmax(lm.logits(hidden) / temperature, dim=-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy


class _Chunked(torch.autograd.Function):
    """The same a chunk of tokens at a time. With z = (h W + b) / T: d log p(y) / dz = [y] - p, and
    dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for h, y in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            z = _scaled(h, weight, bias, temperature)
            lse = z.logsumexp(-1)
            chosen = z.gather(-1, y[:, None])[:, 0] - lse
            z.sub_(lse[:, None])
            found.append((chosen, -(z.exp() * z).sum(-1), lse))
        logp, entropy, lse = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, device=weight.device) if wants_weight else None
        grad_bias = torch.zeros(bias.shape, device=bias.device) if wants_bias else None
        for at in range(0, len(targets), ctx.chunk):
            part = slice(at, at + ctx.chunk)
            h, y = hidden[part], targets[part]
            z = _scaled(h, weight, bias, ctx.temperature).sub_(lse[part, None])  # log p
            p = z.exp()
            z.add_(entropy[part, None]).mul_(-grad_entropy[part, None]).sub_(grad_logp[part, None]).mul_(p)
            z[torch.arange(len(y), device=y.device), y] += grad_logp[part]
            z.div_(ctx.temperature)
            low = z.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = low @ weight
            if grad_weight is not None:
                grad_weight += float_matmul(low.T, h)
            if grad_bias is not None:
                grad_bias += z.sum(0)
        rounded = [None if g is None else g.to(weight.dtype) for g in (grad_weight, grad_bias)]
        return grad_hidden, *rounded, None, None, None


def _scaled(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    z = float_matmul(hidden, weight.T)
    if bias is not None:
        z += bias
    return z.div_(temperature)
