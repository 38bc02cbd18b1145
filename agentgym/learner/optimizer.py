"""From gradients to other weights: AdamW, Muon, float32 masters, clipping, schedules.

Owns the optimisers' state. What the gradient is of, is update.py's business."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.learner.distributed import ALONE, Ranks
from agentgym.learner.pack import Layout


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Steps, rates and bounds of one optimiser, and how a batch goes through the model."""

    lr: float = 5e-4
    """Learning rate of AdamW."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls from its start to its end."""
    lr_final: float = 0.3
    """Where the rate ends, as a share of where it starts."""
    warmup: int = 0
    """Steps over which the rate rises from 0."""
    muon_lr: float = 0.0
    """Learning rate of Muon on the hidden matrices; 0 leaves them to AdamW."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    microbatch_tokens: int = 32_768
    """Cells (tokens and padding) that go through the model at once: the memory bound."""
    layout: Literal["auto", "padded", "packed", "tree"] = "auto"
    """How rows share a pass: padded to one length, packed in one line, or a tree of what they share; auto is padded on
    a CPU and packed on a GPU."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass rather than keep it: less memory, a third more time."""
    compile: bool = False
    """Compile the pass over a part with torch.compile; needs a C++ compiler."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip_norm", "microbatch_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("lr_final", "warmup", "muon_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a decay lies from 0 to below 1")

    def resolved_layout(self, device: torch.device) -> Layout:
        if self.layout == "auto":
            return "padded" if device.type == "cpu" else "packed"
        return self.layout


class Optimizer:
    """AdamW; with `muon_lr`, Muon on the hidden matrices (Jordan et al. 2024) and AdamW on the rest. Weights below
    float32 are rounded copies of float32 masters."""

    def __init__(self, lm: CausalLM, config: OptimizerConfig, *, total_steps: int, ranks: Ranks = ALONE) -> None:
        self.config = config
        self.total_steps = max(1, total_steps)
        self._ranks = ranks
        self._params = [p for p in lm.model.parameters() if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self._params]
        self._optimizers = _optimizers(lm, self._params, self.masters, config)
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._optimizers]

    def clear(self) -> None:
        for p in (*self._params, *self.masters):
            p.grad = None

    def apply(self, version: int) -> float:
        """Clip, step, and (for low-precision weights) round the masters into the model. -> gradient norm; where that is
        not finite, nothing has changed: one such step would leave no weight that is a number."""
        for p, master in zip(self._params, self.masters, strict=True):
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
                p.grad = None
        norm = float(self._ranks.whole(nn.utils.clip_grad_norm_(self.masters, self.config.clip_norm)))
        if not math.isfinite(norm):
            return norm
        scale = self.scale(version)
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimizer.step()
        with torch.no_grad():
            for p, master in zip(self._params, self.masters, strict=True):
                if master is not p:
                    p.copy_(master)
        return norm

    def scale(self, version: int) -> float:
        """The rate's share at that step: a linear rise over `warmup`, then the schedule down to `lr_final`."""
        c = self.config
        if version < c.warmup:
            return (version + 1) / c.warmup
        done = min(1.0, (version - c.warmup) / max(1, self.total_steps - c.warmup))
        if c.lr_schedule == "constant":
            return 1.0
        if c.lr_schedule == "cosine":
            return c.lr_final + (1 - c.lr_final) * (1 + math.cos(math.pi * done)) / 2
        return 1 - (1 - c.lr_final) * done

    def state_dict(self) -> dict[str, Any]:
        return {
            "masters": [m if m is not p else None for p, m in zip(self._params, self.masters, strict=True)],
            "optimizers": self._ranks.whole([o.state_dict() for o in self._optimizers]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                if saved is not None:
                    master.copy_(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(self._sharded(optimizer, saved))

    def _sharded(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        """The saved state with its tensors sharded as the parameters are."""
        params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            at: {
                name: self._ranks.shard_like(value, params[at]) if isinstance(value, Tensor) and value.ndim else value
                for name, value in values.items()
            }
            for at, values in saved["state"].items()
        }
        return {**saved, "state": state}


def _optimizers(
    lm: CausalLM, params: list[nn.Parameter], masters: list[Tensor], config: OptimizerConfig
) -> list[torch.optim.Optimizer]:
    model = lm.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(m.weight) for m in ends if m is not None}
    hidden = [m for p, m in zip(params, masters, strict=True) if p.ndim == 2 and id(p) not in outside]
    is_hidden = {id(m) for m in hidden} if config.muon_lr > 0 else set()
    rest = [m for m in masters if id(m) not in is_hidden]
    betas = (config.beta1, config.beta2)
    made: list[torch.optim.Optimizer] = []
    if rest:
        made.append(torch.optim.AdamW(rest, lr=config.lr, betas=betas, weight_decay=config.weight_decay, foreach=True))
    if is_hidden:
        made.append(torch.optim.Muon(hidden, lr=config.muon_lr, momentum=0.95, weight_decay=config.weight_decay))
    return made
