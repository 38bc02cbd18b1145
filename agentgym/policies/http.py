"""A chat as a policy: a model behind an OpenAI-compatible server, or a function of one's own.

Owns the conversation of one episode: what the model is shown of the tools, how its calls are read, what goes back to
it. Requests, retries and limits are chat.py's business. There are no tokens of ours here, so nothing to train on."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any, cast

import gymnasium

from agentgym.chat import Chat, ChatClient
from agentgym.env import Observation
from agentgym.errors import ConfigError, PolicyError, nearest
from agentgym.messages import JSON, Message, ToolCall, assistant, raw_call, system, user
from agentgym.plugins import called
from agentgym.spaces import as_message
from agentgym.syntax import SYNTAXES, Syntax, get_syntax

NATIVE = "native"
TOOL_CALLS = (NATIVE, *(name for name in SYNTAXES if name != "structured"))
OFFERED = ("messages", "tools", "seed")  # what a function may ask for, by the names of its parameters
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")


class ChatPolicy:
    """A chat, serving any number of episodes at once. `tool_calls` is "native" (beside the text, as the server offers
    them) or the syntax in which the model is told to spell them in its text. Raises ConfigError for an unknown one."""

    def __init__(self, chat: Chat, *, tool_calls: str = NATIVE) -> None:
        if tool_calls not in TOOL_CALLS:
            known = ", ".join(TOOL_CALLS)
            raise ConfigError(f"no tool calls {tool_calls!r}{nearest(tool_calls, TOOL_CALLS)} There are {known}")
        self.chat = chat
        self.syntax: Syntax | None = None if tool_calls == NATIVE else get_syntax(tool_calls)

    def begin(self, env: gymnasium.Env, *, seed: int) -> ChatActor:
        return ChatActor(self.chat, self.syntax, seed)

    async def aclose(self) -> None:
        """Close the client's connections, where there is one."""
        if isinstance(self.chat, ChatClient):
            await self.chat.aclose()


class ChatActor:
    """One episode's conversation."""

    ledger = None

    def __init__(self, chat: Chat, syntax: Syntax | None, seed: int) -> None:
        self._chat = chat
        self._syntax = syntax
        self._seed = seed & 0x7FFF_FFFF  # what every server takes; one more per turn
        self._tools: Sequence[Mapping[str, JSON]] = ()
        self._messages: list[Message] = []  # as the model has seen them

    async def act(self, observation: Observation) -> Message:
        if self._syntax is None:
            self._tools = self._tools if observation["tools"] is None else observation["tools"]
            self._messages += [_repeatable(m) if m["role"] == "assistant" else m for m in observation["messages"]]
        else:
            self._messages += _worded(observation, self._syntax, is_first=not self._messages)
        said = await self._chat(self._messages, tools=self._tools or None, seed=self._seed)
        self._seed = (self._seed + 1) & 0x7FFF_FFFF
        message = _message(said)
        if self._syntax is None:
            self._messages.append(_repeatable(message))
            return message
        self._messages.append(assistant(message["content"]))
        meant = {**message, **self._syntax.parse(message["content"])}
        return cast(Message, meant)

    async def close(self) -> None:
        """Nothing is held: connections are the client's."""


def from_function(function: Callable[..., Any]) -> Chat:
    """A plain or async function as a chat. It is called with what its parameters are named after: `messages` (the
    conversation so far), `tools` (on offer now, or None) and `seed`; and gives text or an assistant message. A plain
    one runs in a thread. What it gives is the policy's own; what it raises is taken for its machine's fault, which is
    tried again and in no denominator, unless it is a PolicyError. Raises ConfigError for other parameters."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{function!r:.80} does not say its parameters: {error}; wrap it in a function") from None
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    wanted = OFFERED if len(named) < len(parameters) else named
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise ConfigError(f"{function!r:.80} takes parameters by place only; remove the / from its definition")
    for name in named:
        if name not in OFFERED:
            raise ConfigError(
                f"{getattr(function, '__name__', function)}() wants {name!r}{nearest(name, OFFERED)} "
                f"A policy's function takes {', '.join(OFFERED)}, by name"
            )

    async def chat(
        messages: Sequence[Message], *, tools: Sequence[Mapping[str, JSON]] | None = None, seed: int | None = None
    ) -> Any:
        given = {"messages": list(messages), "tools": tools, "seed": seed}
        return await called(function, PolicyError, **deepcopy({name: given[name] for name in wanted}))

    return chat


def _message(said: Any) -> Message:
    """What a chat gave, as a clean message. Raises PolicyError where it is none."""
    try:
        return as_message(said)
    except Exception as error:  # what a function gave may raise whatever it likes when it is looked at
        raise PolicyError(f"the policy's message is none: {error}") from None


def _repeatable(message: Message) -> Message:
    """A reply as a server takes it back: chat templates read arguments as JSON, and refuse a conversation in which the
    model once wrote some that are none. The record keeps them as they were."""
    calls = [_readable(call) for call in message.get("tool_calls") or ()]
    return assistant(message["content"], *calls)


def _readable(call: ToolCall) -> ToolCall:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    written = arguments if is_object else json.dumps({"unreadable": arguments})
    return raw_call(_NO_NAME.sub("_", name)[:64] or "unnamed", written, call["id"])


def _worded(observation: Observation, syntax: Syntax, *, is_first: bool) -> list[Message]:
    """An observation in messages that hold text only: tools are told in the system message, or where they change in
    the user's; results are the user's words, all in one message, since many templates want roles to alternate."""
    told = syntax.instructions(observation["tools"] or ())
    messages: list[Message] = []
    for is_policys, group in groupby(observation["messages"], lambda message: message["role"] == "assistant"):
        if is_policys:  # a conversation that another actor began
            messages += [assistant(syntax.format(message)) for message in group]
        elif is_first and not messages:
            messages += group
        else:
            messages.append(user("\n".join(map(syntax.reply, group))))
    if is_first:
        if told and messages and messages[0]["role"] == "system":
            return [system(f"{messages[0]['content']}\n\n{told}"), *messages[1:]]
        return [system(told), *messages] if told else messages
    parts = [message["content"] for message in messages]
    return [user("\n".join(parts + ([f"The tools are now:\n{told}"] if told else [])))]
