"""Episodes worth one verdict each, for statistics tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentgym.errors import Failure, FailureKind
from agentgym.ledger import Episode, StopReason
from agentgym.messages import assistant, user


def make_episode(
    task: str = "test:a",
    reward: float = 1.0,
    *,
    attempt: int = 0,
    horizon: int | None = None,
    failure: FailureKind | None = None,
) -> Episode:
    return Episode(
        run="eval",
        update=0,
        task_id=task,
        attempt=attempt,
        seed=0,
        split="test",
        group=0,
        env_id="agentgym/Door-v0",
        env_version="0",
        messages=(user("Open the door."), assistant("It is open.")),
        turns=(),
        reward=reward,
        reward_parts={},
        terminated=True,
        truncated=False,
        stop_reason=StopReason.FAILED if failure else StopReason.ANSWERED,
        failure=Failure(failure, "SandboxError", "the container is gone") if failure else None,
        metadata={} if horizon is None else {"horizon": horizon},
    )


@pytest.fixture
def episode() -> Callable[..., Episode]:
    return make_episode
