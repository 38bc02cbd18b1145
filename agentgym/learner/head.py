"""From hidden states to log-probs and entropy, at the trainable positions only and in chunks.

Owns the only place where the learner touches the vocabulary: float32, temperature inside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agentgym.engines.causal import CausalLM

CHUNK_CELLS = 1 << 25  # logits held at once: tokens x vocabulary


def logp_and_entropy(lm: CausalLM, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """hidden [N, width], targets [N] int64 -> log p(target) [N] and entropy [N] in nats (no gradient), float32, of
    the distribution at that temperature."""
    size = max(1, CHUNK_CELLS // lm.vocab_size)
    if len(targets) <= size or not torch.is_grad_enabled():
        parts = [_chunk(lm, h, t, temperature) for h, t in zip(hidden.split(size), targets.split(size), strict=True)]
    else:  # the logits of a chunk are computed again in the backward pass rather than kept
        parts = [
            checkpoint(_chunk, lm, h, t, temperature, use_reentrant=False)
            for h, t in zip(hidden.split(size), targets.split(size), strict=True)
        ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])  # type: ignore[index]


def _chunk(lm: CausalLM, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(lm.logits(hidden) / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy
