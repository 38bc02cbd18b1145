"""Random ledgers, the gradient that the learner takes on them, and the same gradient the slow way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agentgym.ledger import Ledger, Segment, Source

if TYPE_CHECKING:
    from torch import Tensor

    from agentgym.engines.causal import CausalLM
    from agentgym.learner.pack import Trajectory
    from agentgym.learner.update import ObjectiveConfig

STILL = 1e-30  # a learning rate that moves nothing: the gradient is what is looked at


@pytest.fixture(scope="session")
def random_ledger() -> Callable[..., Ledger]:
    """Observed and sampled ids in turns of random lengths, with recorded log-probs some way off the model's."""

    def made(seed: int, *, turns: int = 3, longest: int = 12, source: Source = Source.SAMPLED) -> Ledger:
        chance, ledger = np.random.default_rng(seed), Ledger()
        for turn in range(turns):
            observed, replied = chance.integers(1, longest, 2)
            ledger.append(Segment(chance.integers(0, 300, observed), Source.OBSERVED, turn))
            ids = chance.integers(0, 300, replied)
            logprobs = -chance.uniform(3.0, 9.0, replied) if source is Source.SAMPLED else None
            ledger.append(Segment(ids, source, turn, logprobs, 0 if source is Source.SAMPLED else None))
        return ledger

    return made


@pytest.fixture(scope="session")
def gradient() -> Callable[..., Tensor]:
    """All gradients of one learner step, flat."""
    import torch

    from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig

    def taken(
        lm: CausalLM,
        trajectories: Sequence[Trajectory],
        config: ObjectiveConfig | None = ObjectiveConfig(),  # noqa: B008
        *,
        temperature: float = 1.0,
        microbatch_tokens: int = 32_768,
    ) -> Tensor:
        settings = OptimizerConfig(lr=STILL, clip_norm=1e30, microbatch_tokens=microbatch_tokens)
        Learner(lm, settings, total_steps=1).step(trajectories, config, temperature=temperature)
        parameters = [p for p in lm.model.parameters() if p.requires_grad]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]).clone()

    return taken


@pytest.fixture(scope="session")
def plain_gradient() -> Callable[..., Tensor]:
    """The same, one row after the other through the model's own forward pass, with the formulas written out."""
    import torch

    def taken(
        lm: CausalLM,
        trajectories: Sequence[Trajectory],
        *,
        objective: str = "ppo_clip",
        denominator: str = "tokens",
        temperature: float = 1.0,
        low: float = 0.2,
        high: float = 0.28,
    ) -> Tensor:
        lm.model.zero_grad()
        counts = [t.ledger.num_sampled for t in trajectories]
        for trajectory, count in zip(trajectories, counts, strict=True):
            for row in trajectory.ledger.rows():
                ids = torch.tensor(row.ids[None].astype(np.int64))
                logits = lm.model(input_ids=ids).logits[0]
                loss = torch.zeros(())
                for at in np.flatnonzero(row.sampled):
                    logp = torch.log_softmax(logits[at - 1] / temperature, -1)[ids[0, at]]
                    ratio = (logp - float(row.logprobs[at])).exp()
                    a = float(trajectory.advantages[row.turns[at]])
                    if objective == "ppo_clip":
                        term = -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
                    else:
                        term = -a * logp
                    weight = sum(counts) if denominator == "tokens" else count * len(trajectories)
                    loss = loss + term / weight
                if loss.requires_grad:
                    loss.backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in lm.model.parameters()]
        return torch.cat([g.flatten() for g in found]).clone()

    return taken


@pytest.fixture(scope="session")
def apart() -> Callable[[Any, Any], float]:
    """How far apart two gradients are, as a share of their size."""

    def share(a: Tensor, b: Tensor) -> float:
        assert float(b.norm()) > 1e-3
        return float((a - b).norm() / b.norm())

    return share
