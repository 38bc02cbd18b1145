"""Episodes as a person reads them: which ones the report shows, and how a transcript is cut and folded.

Owns the choice (by rule, never by hand) and the cutting. Escaping and layout are report.html.jinja's business."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from agentgym.ledger import Episode
from agentgym.messages import Message, safe

NUM_SAMPLES = 4  # tasks shown before and after
FOLD_AFTER = 14  # messages of a transcript shown unfolded
LONGEST_TEXT = 4000  # characters of one message shown; the store has the rest


def samples(before: Iterable[Episode] | None, after: Iterable[Episode]) -> list[dict[str, Any]]:
    """The same tasks before and after, or without a before alone: the first task of evenly chosen horizons, whatever
    came of them, and then the first failure after training, where there is one. Chosen by rule, so that nobody picks
    the pretty ones."""
    later = {e.task_id: e for e in after if e.attempt == 0}
    earlier = later if before is None else {e.task_id: e for e in before if e.attempt == 0}
    sides = {"": later} if before is None else {"before": earlier, "after": later}
    first: dict[Any, str] = {}
    for task_id, episode in later.items():
        if task_id in earlier:
            first.setdefault(episode.metadata.get("horizon"), task_id)
    if not first:
        return []
    horizons = sorted(first, key=lambda h: (h is None, h))
    step = max(1.0, (len(horizons) - 1) / (NUM_SAMPLES - 1))
    picked = [first[horizons[min(round(i * step), len(horizons) - 1)]] for i in range(min(NUM_SAMPLES, len(horizons)))]
    failed = next((t for t, e in later.items() if t in earlier and e.counts and not e.success), None)
    tasks = picked if failed is None or failed in picked else [*picked, failed]
    why = "first failure" if before is None else "first failure after training"
    return [
        {
            "task": task_id,
            "horizon": later[task_id].metadata.get("horizon"),
            "why": why if task_id == failed else None,
            "sides": [(when, told(episodes[task_id])) for when, episodes in sides.items()],
        }
        for task_id in tasks
    ]


def told(episode: Episode) -> dict[str, Any]:
    """An episode as the template shows it."""
    messages = [_told_message(message) for message in episode.messages]
    keep = FOLD_AFTER // 2
    folds = [messages] if len(messages) <= FOLD_AFTER else [messages[:keep], messages[keep:-keep], messages[-keep:]]
    return {
        "folds": folds,
        "success": episode.success,
        "reward": episode.reward,
        "num_turns": len(episode.turns),
        "stop_reason": str(episode.stop_reason).replace("_", " "),
        "failure": episode.failure,
    }


def _told_message(message: Message) -> dict[str, Any]:
    calls = [
        {"name": _cut(call["function"]["name"]), "arguments": _cut(_as_arguments(call["function"]["arguments"]))}
        for call in message.get("tool_calls") or ()
    ]
    return {
        "role": message["role"],
        "content": _cut(message["content"]),
        "reasoning": _cut(message.get("reasoning") or ""),
        "calls": calls,
    }


def _as_arguments(text: str) -> str:
    """`{"key": 33}` as `key=33`; what is no JSON object stays as the model spelt it."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(arguments, dict):
        return text
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def _cut(text: str) -> str:
    """At most LONGEST_TEXT characters; those that are invisible or turn the reading direction are spelt out."""
    shown = safe(text[:LONGEST_TEXT])
    return shown if len(text) <= LONGEST_TEXT else f"{shown}… [{len(text) - LONGEST_TEXT:,} more characters]"
