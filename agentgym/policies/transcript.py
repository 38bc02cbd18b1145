"""A chat and its ids, kept in step, for whoever samples replies and for whoever wrote them down.

Owns how a model is told about tools (ChatFormat), and which ids each observation and reply add. How a template renders
is render.py's business, how a call is spelt syntax.py's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from agentgym.env import Observation
from agentgym.errors import ConfigError
from agentgym.ledger import IntArray, Ledger, Segment, Source
from agentgym.messages import Message, assistant, system, user
from agentgym.policies.render import Observed, Renderer
from agentgym.syntax import Syntax, get_syntax

FORMAT_FILE = "agentgym.json"  # in a model's folder: how this model was taught to speak


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model speaks: the spelling of its tool calls, and where it reads about tools."""

    syntax: str = "hermes"
    tools: Literal["auto", "hidden"] = "auto"  # auto: in the template if it shows them, else in the system message

    @classmethod
    def load(cls, folder: str) -> ChatFormat:
        """The format saved beside a model, or the default."""
        path = Path(folder).expanduser() / FORMAT_FILE
        if not path.is_file():
            return cls()
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not a chat format: {error}. Delete it or write {asdict(cls())}.") from error

    def save(self, folder: Path) -> None:
        (folder / FORMAT_FILE).write_text(json.dumps(asdict(self)) + "\n", "utf-8")


def as_ids(ids: Sequence[int]) -> IntArray:
    return np.array(ids, np.int32)


@dataclass(frozen=True, slots=True)
class View:
    """What the chat becomes when something is taken in."""

    messages: list[Message]  # the whole chat, as it is rendered
    tools: list[dict] | None  # as the template lists them
    num_opening: int  # messages before the first reply
    seen: Observed


class Transcript:
    """A chat and its ids, kept in step: observations are rendered, replies are taken as they were sampled."""

    def __init__(self, renderer: Renderer, syntax: Syntax, chat: ChatFormat) -> None:
        self.renderer = renderer
        self.syntax = syntax
        self.chat = chat
        self.ids: list[int] = []
        self.messages: list[Message] = []
        self.tools: list[dict] | None = None
        self._num_opening = 0
        self._opening: list[Message] = []  # as the environment said it
        self._offered: list[dict] | None = None  # the tools it named last
        self._stopped_by: int | None = None
        self._parse: Callable[[str], Message] = syntax.parse

    def observe(self, observation: Observation, turn: int) -> list[Segment]:
        """Take in what the environment said; the segments it adds to the ledger."""
        return self.take(self.look(observation), turn)

    def look(self, observation: Observation) -> View:
        """What the chat becomes by what the environment said; nothing is taken in yet."""
        new, tools = list(observation["messages"]), observation["tools"]
        if self.chat.tools == "hidden":
            tools = None
        self._offered = self._offered if tools is None else tools
        if not self.messages:
            self._opening = new
            return self.opened()
        new = self._worded(new, tools)
        seen = self.renderer.extend(self.messages, new, self.tools, stopped_by=self._stopped_by)
        return View([*self.messages, *new], self.tools, self._num_opening, seen)

    def opened(self, later: Sequence[Message] = (), note: str = "") -> View:
        """The opening, a note in the user's words and later messages as a chat of its own, rendered anew."""
        opening = list(self._opening)
        in_template = self._offered if self.renderer.shows_tools else None
        if self._offered and in_template is None:
            head = opening[: bool(opening and opening[0]["role"] == "system")]
            opening = [*_appended(head, system(self.syntax.instructions(self._offered))), *opening[len(head) :]]
        if note:
            opening = _appended(opening, user(note))
        if not self.renderer.shows_system and opening and opening[0]["role"] == "system":
            first, *rest = opening
            opening = [*_appended([user(first["content"])], *rest[:1]), *rest[1:]]
        messages = [*opening, *later]
        seen = Observed(self.renderer.open(messages, in_template or None), "fork")
        return View(messages, in_template or None, len(opening), seen)

    def take(self, view: View, turn: int) -> list[Segment]:
        """Take in what was looked at; the segments it adds to the ledger."""
        forks = view.seen.outcome == "fork"
        follows = bool(self.ids)
        self.messages, self.tools, self._num_opening = view.messages, view.tools, view.num_opening
        self.ids[0 if forks else len(self.ids) :] = view.seen.ids
        ids = as_ids(view.seen.ids)
        return [Segment(ids, Source.OBSERVED, turn, forks=forks and follows)] if len(ids) else []

    def reply(self, ids: tuple[int, ...], *, stopped: bool) -> Message:
        """Take in what the policy sampled; the message it means."""
        self.ids += ids
        self._stopped_by = ids[-1] if stopped else None
        text = self.renderer.decode(ids[:-1] if stopped else ids)
        self.messages.append(assistant(text))
        return deepcopy(self._parse(text))

    def write(self, text: str, turn: int) -> list[Segment]:
        """Take in a reply that somebody wrote, as a policy would have sampled it."""
        ids = self.renderer.written(text)
        self.ids += ids
        self._stopped_by = ids[-1]
        self.messages.append(assistant(text))
        return [Segment(as_ids(ids), Source.WRITTEN, turn)]

    def _worded(self, new: list[Message], tools: list[dict] | None) -> list[Message]:
        """An observation as the template can show it. Tools that changed in the middle are told in text, which only
        appends; results that the template does not show are the user's words, all in one message, since most such
        templates want the roles to alternate."""
        if tools is not None:
            new = _appended(new, user("The tools are now:\n" + self.syntax.instructions(tools)))
        if not self.renderer.shows_results and any(m["role"] == "tool" for m in new):
            new = [user("\n".join(map(self.syntax.reply, new)))]
        return new


def _appended(messages: Sequence[Message], *more: Message) -> list[Message]:
    """Messages and what follows them; one of the last's role joins it, since many templates want roles to alternate."""
    made = list(messages)
    for message in more:
        if made and made[-1]["role"] == message["role"]:
            joined = f"{made[-1]['content']}\n\n{message['content']}"
            made[-1] = {**made[-1], "content": joined}
        else:
            made.append(message)
    return made


def written_ledger(
    messages: Sequence[Message], renderer: Renderer, chat: ChatFormat, tools: list[dict] | None
) -> Ledger:
    """A conversation as tokens: the same ids a policy would have seen and sampled, marked as written."""
    syntax: Syntax = get_syntax(chat.syntax)
    transcript, ledger, turn = Transcript(renderer, syntax, chat), Ledger(), 0
    messages = list(messages)
    while messages:
        replies = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not replies:
            break  # what came after the last reply was never answered
        seen, reply = messages[: replies[0]], messages[replies[0]]
        offered = tools if turn == 0 else None
        for segment in (
            *transcript.observe({"messages": seen, "tools": offered}, turn),
            *transcript.write(syntax.format(reply), turn),
        ):
            ledger.append(segment)
        messages, turn = messages[replies[0] + 1 :], turn + 1
    return ledger
