"""What a training claim is held against: the same run, taught by something that is not the task.

Owns the two controls' rewards. A gain that random or format-only reward brings as well was no gain by the task's own
(Shao et al. 2025, "Spurious Rewards"; Wang et al. 2025, one-shot RLVR, whose format-only control explains most)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from agentgym.ledger import Episode
from agentgym.messages import Message

Reward = Literal["environment", "random", "format"]


def taught(episodes: Sequence[Episode], reward: Reward) -> list[Episode]:
    """The episodes as the learner is told of them: with the environment's reward; with a coin's, thrown anew for
    every attempt; or with 1 where every message was in order, whatever it said, and 0 elsewhere."""
    if reward == "environment":
        return list(episodes)
    return [_worth(e, _coin(e) if reward == "random" else float(is_well_formed(e))) for e in episodes]


def is_well_formed(episode: Episode) -> bool:
    """Whether every message of the policy was whole, said something, and spelt its calls so that they could be read."""
    said = [m for m in episode.messages if m["role"] == "assistant"]
    return bool(said) and all(map(_in_order, said))


def _in_order(message: Message) -> bool:
    calls = message.get("tool_calls") or ()
    says = bool(calls or message["content"].strip())
    return says and message.get("finish_reason") != "length" and all(map(_is_readable, calls))


def _is_readable(call: object) -> bool:
    if not isinstance(call, dict) or call.get("error") is not None:
        return False
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _coin(episode: Episode) -> float:
    """By seed and attempt: those of a group share their seed."""
    return float(np.random.default_rng([episode.seed % (1 << 64), episode.attempt, 1]).integers(2))


def _worth(episode: Episode, reward: float) -> Episode:
    """At its end, as the task's own would be."""
    return replace(episode, reward=reward, turns=tuple(replace(turn, reward=0.0) for turn in episode.turns))
