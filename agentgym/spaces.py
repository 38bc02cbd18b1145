"""What an observation and an action are, as types and as Gymnasium spaces.

Owns both types, the border where whatever a policy handed over becomes one clean message (`as_message`), and the two
message spaces plus one of any text. What an environment does with a message is env.py's business."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypedDict

import gymnasium
import numpy as np
from gymnasium.vector.utils import create_shared_memory

from agentgym.errors import ConfigError
from agentgym.messages import JSON, MAX_COUNT, Message, ToolCall, assistant, clean, raw_call

MAX_CHARS = 1_000_000  # of one text that enters a transcript; what is longer is cut, with a marker
_ROLES = ("system", "user", "assistant", "tool")
_FINISHES = ("stop", "length", "context")
_WORDS = ("open", "the", "door", "42", "-7", "ünï", "no", "yes", "\n", "{", "<tool>", "🙂", "end")


class Observation(TypedDict):
    """What an agent sees: the messages since its last action, and the tools where their offer changed."""

    messages: list[Message]
    tools: list[dict[str, JSON]] | None


Action = str | Message  # text alone, or an assistant message


def as_message(action: Any) -> Message:
    """One clean assistant message, with unique call ids, of what a policy handed over.

    Text of any kind is accepted: it is the model's. Raises ConfigError for a wrong Python type: the policy's fault."""
    if isinstance(action, str):
        return {"role": "assistant", "content": cut(clean(action))}
    if not isinstance(action, Mapping):
        raise ConfigError(
            f"an action is a str or an assistant message (a dict), not {type(action).__name__}: {action!r:.80}"
        )
    if action.get("role", "assistant") != "assistant":
        raise ConfigError(f"an action has the role 'assistant', not {action['role']!r:.80}; only the agent acts")
    content = action.get("content")
    if content is not None and not isinstance(content, str):
        raise ConfigError(f"an action's content is text, not {type(content).__name__}; join its parts first")
    message: Message = {"role": "assistant", "content": cut(clean(content or ""))}
    if isinstance(reasoning := action.get("reasoning"), str):
        message["reasoning"] = cut(clean(reasoning))
    if calls := action.get("tool_calls"):
        if not isinstance(calls, (list, tuple)):
            raise ConfigError(f"an action's tool_calls are a list, not {type(calls).__name__}")
        message["tool_calls"] = _as_calls(calls)
    if action.get("finish_reason") in _FINISHES:
        message["finish_reason"] = action["finish_reason"]
    for name in ("num_tokens", "prompt_tokens"):
        if (tokens := action.get(name)) is not None:
            is_count = isinstance(tokens, (int, np.integer)) and type(tokens) is not bool
            if not (is_count and 0 <= tokens < MAX_COUNT):
                raise ConfigError(f"an action's {name} is a count, not {tokens!r:.80}")
            message[name] = int(tokens)
    return message


def _as_calls(calls: Iterable[Any]) -> list[ToolCall]:
    made: list[ToolCall] = []
    taken: set[str] = set()
    for index, given in enumerate(calls):
        one = _as_call(given)
        if one["id"] in taken or not one["id"]:
            number = index
            while (fresh := f"call_{number}") in taken:
                number += 1
            one["id"] = fresh
        taken.add(one["id"])
        made.append(one)
    return made


def _as_call(given: Any) -> ToolCall:
    """A call in our shape; what cannot be one carries an error that the tool message will say."""
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping):
        return raw_call(
            "", cut(clean(repr(given)[:200])), "", "a call is an object with a function's name and arguments"
        )
    call_id, name, arguments = given.get("id"), function.get("name"), function.get("arguments")
    error = given.get("error")
    if not isinstance(name, str):
        error, name = error or "the call names no tool", ""
    if not isinstance(arguments, str):
        try:
            arguments = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            error, arguments = error or "the arguments are not JSON", ""
    if len(arguments) > MAX_CHARS:
        error = error or f"the arguments have {len(arguments):,} characters; the limit is {MAX_CHARS:,}"
    made = raw_call(clean(name[:200]), cut(clean(arguments)), clean(call_id[:200]) if isinstance(call_id, str) else "")
    if error is not None:
        made["error"] = clean(str(error)[:1000])
    return made


def cut(text: str, limit: int = MAX_CHARS) -> str:
    """The text, or its first `limit` characters and a marker that says how much is missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut here: {limit:,} of {len(text):,} characters are shown]"


class ActionSpace(gymnasium.Space[Action]):
    """Any text, and any assistant message. `tools` are the names that sampled calls use."""

    def __init__(self, tools: Iterable[str] = (), seed: int | None = None) -> None:
        self.tools = tuple(tools)
        super().__init__(None, None, seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> Action:
        """Seeded text, or a message with up to two calls (masks have no meaning here and are refused)."""
        _refuse_masks(mask, probability)
        rng, words = self.np_random, sample_text(self.np_random)
        if rng.random() < 0.3:
            return words
        names = self.tools or ("look", "take")
        calls = [
            raw_call(
                names[int(rng.integers(len(names)))],
                json.dumps({"value": sample_text(rng), "number": int(rng.integers(100))}),
                f"call_{i}",
            )
            for i in range(int(rng.integers(3)))
        ]
        return assistant(words, *calls)

    def contains(self, x: Any) -> bool:
        """Whether an environment accepts it: text, or an assistant message of the right Python types."""
        try:
            as_message(x)
        except ConfigError:
            return False
        return True

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and self.tools == other.tools

    __hash__ = None  # type: ignore[assignment]  # mutable, like every space

    def __repr__(self) -> str:
        return f"ActionSpace(tools={list(self.tools)})"


class ObservationSpace(gymnasium.Space[Observation]):
    """Any list of new messages, with the tools on offer or None."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(None, None, seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> Observation:
        """Seeded user messages and no tools (masks have no meaning here and are refused)."""
        _refuse_masks(mask, probability)
        count = int(self.np_random.integers(1, 4))
        return {
            "messages": [{"role": "user", "content": sample_text(self.np_random)} for _ in range(count)],
            "tools": None,
        }

    def contains(self, x: Any) -> bool:
        return (
            isinstance(x, dict)
            and set(x) == {"messages", "tools"}
            and isinstance(x["messages"], list)
            and all(map(_is_message, x["messages"]))
            and (x["tools"] is None or (isinstance(x["tools"], list) and all(isinstance(t, dict) for t in x["tools"])))
        )

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObservationSpace)

    __hash__ = None  # type: ignore[assignment]  # mutable, like every space

    def __repr__(self) -> str:
        return "ObservationSpace()"


class TextSpace(gymnasium.Space[str]):
    """Any unicode text of any length (Gymnasium's own Text knows ASCII letters and digits by default)."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(None, None, seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        _refuse_masks(mask, probability)
        return sample_text(self.np_random)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace)

    __hash__ = None  # type: ignore[assignment]  # mutable, like every space

    def __repr__(self) -> str:
        return "TextSpace()"


def sample_text(rng: np.random.Generator) -> str:
    """One to six short words of several scripts."""
    return " ".join(_WORDS[int(i)] for i in rng.integers(len(_WORDS), size=int(rng.integers(1, 7))))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str)


def _refuse_masks(mask: Any, probability: Any) -> None:
    if mask is not None or probability is not None:
        raise ConfigError("spaces of messages and text take no mask or probability; call sample() without them")


@create_shared_memory.register(ActionSpace)
@create_shared_memory.register(ObservationSpace)
@create_shared_memory.register(TextSpace)
def _refuse_shared_memory(space: gymnasium.Space, n: int = 1, ctx: ModuleType = multiprocessing) -> Any:
    raise ConfigError(
        f"{space!r} has no fixed size, so it cannot live in shared memory; "
        'use gymnasium.make_vec(..., vectorization_mode="async", vector_kwargs={"shared_memory": False})'
    )
