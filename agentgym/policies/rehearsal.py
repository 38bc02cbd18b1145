"""A chat whose replies somebody writes, recorded as if a policy had sampled them: what a template does to a ledger.

Owns the comparison of the record with one rendering of the whole chat, at every turn. Which chats are worth playing is
template.py's business."""

from __future__ import annotations

import numpy as np

from agentgym.ledger import Ledger, Segment, Source
from agentgym.messages import Message
from agentgym.policies.render import Outcome, Renderer
from agentgym.policies.transcript import ChatFormat, Transcript, as_ids
from agentgym.syntax import get_syntax


class Broken(Exception):
    """A template breaks a rule, and how."""


class Rehearsal:
    """One chat. `tools` are offered with its first observation."""

    def __init__(self, renderer: Renderer, chat: ChatFormat, tools: list[dict] | None = None) -> None:
        self.renderer = renderer
        self.transcript = Transcript(renderer, get_syntax(chat.syntax), chat)
        self.ledger = Ledger()
        self.outcomes: list[Outcome] = []  # of each observation but the first
        self._offered = tools
        self._turn = 0
        self._is_exact = True  # no reply of this row is worded otherwise by the template

    def observe(self, *messages: Message) -> tuple[int, ...]:
        """The ids it adds. Raises Broken where they do not go on as one rendering of the whole chat does."""
        before = list(self.transcript.ids)
        view = self.transcript.look({"messages": list(messages), "tools": self._offered})
        self._offered = None
        for segment in self.transcript.take(view, self._turn):
            self.ledger.append(segment)
        outcome = view.seen.outcome
        if before:
            self.outcomes.append(outcome)
        self._is_exact = outcome == "fork" or (self._is_exact and outcome == "extend")
        if outcome != "fork" and self.transcript.ids[: len(before)] != before:
            raise Broken(f"in turn {self._turn} recorded ids have changed")
        self._compare(view.seen.ids)
        return view.seen.ids

    def reply(self, text: str, *, cut: bool = False) -> None:
        """Somebody's words, sampled; cut: without the token that would have ended them."""
        ids = self.renderer.written(text)
        ids = ids[:-1] if cut else ids
        self.ledger.append(Segment(as_ids(ids), Source.SAMPLED, self._turn, np.zeros(len(ids), np.float32), 0))
        self.transcript.reply(ids, stopped=not cut)
        self._turn += 1

    def whole(self) -> tuple[int, ...]:
        """Ids of the chat so far in one rendering."""
        return self.renderer.open(self.transcript.messages, self.transcript.tools)

    def _compare(self, new: tuple[int, ...]) -> None:
        """As text: where two pieces meet, a rendering of the whole may merge what was sampled apart."""
        recorded = self.renderer.decode(tuple(self.transcript.ids) if self._is_exact else new)
        rendered = self.renderer.decode(self.whole())
        if self.renderer.adds_spaces:  # of its own, behind what is special: the ids hold more than the template wrote
            recorded, rendered = recorded.replace(" ", ""), rendered.replace(" ", "")
        if not self._is_exact:  # then only what is new must be the same
            rendered = rendered[max(0, len(rendered) - len(recorded)) :]
        if recorded != rendered:
            at = max(0, num_shared(recorded, rendered) - 10)
            raise Broken(
                f"in turn {self._turn} the record has {recorded[at : at + 40]!r}, where the chat rendered as a whole "
                f"has {rendered[at : at + 40]!r}"
            )


def num_shared(a: str, b: str) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
