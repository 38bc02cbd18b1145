"""Does what the policy says still depend on what it is asked?

Owns the cross-score of RAGEN-2 (2026): entropy can look healthy while every prompt is answered by one template. Each
first reply is scored behind every prompt; whoever still listens finds its own prompt likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentgym.learner.pack import Trajectory
from agentgym.learner.update import Learner
from agentgym.ledger import Episode, IntArray, Ledger, Segment, Source

MOST = 12  # prompts: their square is scored


def input_retrieval(learner: Learner, episodes: Sequence[Episode], *, temperature: float) -> dict[str, float]:
    """How often a first reply is likelier behind its own prompt than behind any other's, beside what guessing gives;
    one episode per task, nothing where there are fewer than two."""
    pairs = list({e.task_id: pair for e in episodes if e.ledger and (pair := _opening(e.ledger))}.values())[:MOST]
    if len(pairs) < 2:
        return {}
    crossed = []
    for _, reply in pairs:
        for prompt, _ in pairs:
            said = Segment(reply, Source.SAMPLED, 0, np.zeros(len(reply), np.float32), 0)
            crossed.append(Trajectory(Ledger([Segment(prompt, Source.OBSERVED, 0), said]), np.ones(1, np.float32)))
    scores = np.array([float(logp.sum()) for logp in learner.score(crossed, temperature=temperature)])
    table = scores.reshape(len(pairs), len(pairs))  # [replies, prompts]
    best = table.max(axis=1, keepdims=True)
    found = np.where(table == best, 1.0 / (table == best).sum(axis=1, keepdims=True), 0.0)  # ties share
    return {"input_retrieval": float(np.diag(found).mean()), "input_retrieval_chance": 1 / len(pairs)}


def _opening(ledger: Ledger) -> tuple[IntArray, IntArray] | None:
    """Ids of the first prompt and of the first reply; None where nothing was said."""
    row = ledger.rows()[0]
    if not row.sampled.any():
        return None
    first = int(np.argmax(row.sampled))
    reply = row.sampled & (row.turns == row.turns[first])
    return row.ids[:first], row.ids[reply]
