"""What a policy still sees of a long episode: all of it, its newest observations, or its own summary.

Owns the knob, the moment of a rewrite and what the chat becomes by it. A rewrite opens a new row (the ledger forks):
what was sampled before is observed again and never trains twice. A row costs: it holds the history once more. So
rewrites come in blocks: when more than 2n observations are visible or the budget is reached, and at least half of them
are left out, so that the next is some turns away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from agentgym.env import Observation
from agentgym.errors import ConfigError
from agentgym.messages import Message, user

if TYPE_CHECKING:  # the knob is light: a command line reads it
    from agentgym.policies.transcript import Transcript, View

KEEP = 4
ELIDED = "[elided]"
ASK = (
    "Your context is nearly full. The task and the newest messages stay, all else will be gone. Write down what you "
    "need to go on: what you did, what you found, what is still to be done. Call no tool; write these notes only."
)
NOTES = "Your notes on what has happened so far:\n"
Kind = Literal["full", "last", "summarise"]


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """What the policy still sees of its episode. An observation is all that answered one reply."""

    context: Kind = "full"
    """full: everything, until the window is full; last: replies, and the newest observations (older ones are elided);
    summarise: near the budget the policy writes notes, and goes on from the task, its notes and the newest turns"""
    context_keep: int = KEEP
    """observations that a rewrite leaves (fewer where they do not fit); `last` shows up to twice as many in between"""
    context_tokens: int | None = None
    """most tokens that the policy sees, its reply included; None: the model's window"""

    def __post_init__(self) -> None:
        if self.context not in get_args(Kind):
            raise ConfigError(f"context {self.context!r}: give one of {', '.join(get_args(Kind))}")
        if self.context_keep < 1:
            raise ConfigError(f"context_keep={self.context_keep}: the newest observation always stays; give 1 or more")
        if self.context == "full" and self.context_keep != KEEP:
            raise ConfigError(f"context_keep={self.context_keep}: context full keeps all; give context last")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise ConfigError(f"context_tokens={self.context_tokens}: a budget is above 0")

    def budget(self, window: int | None, max_tokens: int) -> int | None:
        """Tokens that the policy may see; None where only the engine's window counts. Raises ConfigError where the
        window (None: not known) is smaller, or where a reply of `max_tokens` does not fit."""
        if self.context == "full" and self.context_tokens is None:
            return None
        budget = self.context_tokens or window
        if budget is None:
            raise ConfigError(f"context {self.context}: this engine does not say its window; give context_tokens")
        if window is not None and budget > window:
            raise ConfigError(f"context_tokens={budget}: the model's window has {window}")
        replies = 2 if self.context == "summarise" else 1
        if budget <= replies * max_tokens:
            raise ConfigError(
                f"a context of {budget} tokens has no room for {replies} x max_tokens={max_tokens}; lower max_tokens"
            )
        return budget


class Context:
    """One episode's chat, kept within a budget. Nothing here samples: whoever holds it asks for the notes."""

    def __init__(self, config: ContextConfig, chat: Transcript, budget: int, max_tokens: int) -> None:
        self.config = config
        self._chat = chat
        self._budget = budget
        self._room = max_tokens  # for the reply
        self._num_elided = 0  # observations
        if config.context == "summarise":  # and for a request and notes in reserve, at every turn
            self._room += max_tokens + len(chat.renderer.open([user(ASK)], None))

    def request(self) -> Observation:
        """What asks the policy for its notes."""
        return {"messages": [user(ASK)], "tools": None}

    def is_due(self, view: View) -> bool:
        """Whether the chat is rewritten before the policy sees this; never where nothing can be left out."""
        num_visible = len(_replies(_later(view))) - self._num_elided
        if self.config.context == "full" or num_visible < 2:
            return False
        if self.config.context == "last" and num_visible > 2 * self.config.context_keep:
            return True
        return self._num_ids(view) + self._room > self._budget

    def rewritten(self, view: View, notes: str = "") -> View:
        """The chat as the policy sees it from here on; the view itself where eliding changes nothing."""
        later, summarises = _later(view), self.config.context == "summarise"
        num_replies = len(_replies(later))
        limit = self._budget // 2 if summarises else self._budget - self._room  # half, so that notes last a while
        made = view
        for keep in range(min(self.config.context_keep, (num_replies - self._num_elided) // 2), 0, -1):
            shown = later[_replies(later)[-keep] :] if summarises else elided(later, keep)
            self._num_elided = 0 if summarises else num_replies - keep
            made = view if shown == later else self._chat.opened(shown, notes and NOTES + notes)
            if self._num_ids(made) <= limit:
                break
        return made

    def _num_ids(self, view: View) -> int:
        """Ids of the history once this is taken in."""
        return len(view.seen.ids) + (0 if view.seen.outcome == "fork" else len(self._chat.ids))


def elided(later: Sequence[Message], keep: int) -> list[Message]:
    """Messages from the first reply on, with the text of all but the newest `keep` observations left out. What is
    shorter than the placeholder stays."""
    kept = _replies(later)[-keep]

    def is_left_out(index: int, message: Message) -> bool:
        return index < kept and message["role"] != "assistant" and len(message["content"]) > len(ELIDED)

    return [{**m, "content": ELIDED} if is_left_out(i, m) else m for i, m in enumerate(later)]


def without_thought(text: str) -> str:
    """What follows the thought, in notes that open with one."""
    return text.rpartition("</think>")[2].strip()


def _later(view: View) -> list[Message]:
    """From the first reply on."""
    return view.messages[view.num_opening :]


def _replies(messages: Sequence[Message]) -> list[int]:
    """Where each reply stands; what follows it up to the next is one observation."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]
