"""Whose fault it is: every error of the library, by who can mend it.

Owns the exception types and the failure record. A failure's kind decides what happens to an episode:
*policy* (the model's fault) counts with its reward, *task* (broken data) is reported, *infrastructure* (ours) is
retried and then leaves the group; it is never a reward of zero."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class AgentGymError(Exception):
    """Base of every error that the library raises on purpose; the message names the value and the fix."""


class ConfigError(AgentGymError):
    """The user's setting, path or id cannot be used."""


class LedgerError(AgentGymError, ValueError):
    """A token record would be wrong: refused at birth."""


class StoreError(AgentGymError):
    """A run's file is unreadable, full, corrupt, or would hold the same attempt twice."""


class PolicyError(AgentGymError):
    """The model's own failure; the episode keeps its place in every denominator."""


class TaskError(AgentGymError):
    """The task's data are broken: reported, never scored."""


class InfrastructureError(AgentGymError):
    """Ours: a sandbox, server or environment broke. The episode is retried, never scored."""


class FailureKind(StrEnum):
    POLICY = "policy"
    TASK = "task"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an episode has no fair reward, and whose fault that is."""

    kind: FailureKind
    cause: str  # the exception's type name: live errors and stored ones resolve alike
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure an exception stands for; what nobody declared is ours (infrastructure)."""
        kind = FailureKind.INFRASTRUCTURE
        if isinstance(error, PolicyError):
            kind = FailureKind.POLICY
        elif isinstance(error, TaskError):
            kind = FailureKind.TASK
        return cls(kind, type(error).__name__, str(error)[:2000])


def nearest(name: str, known: Iterable[str]) -> str:
    """How a sentence about an unknown name ends: `; did you mean 'x'?`, or a full stop where no known name is close."""
    close = difflib.get_close_matches(name[:100], list(known)[:1000], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."
