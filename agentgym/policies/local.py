"""A policy that samples tokens from an engine and remembers exactly which.

Owns the step from observation to ids and from sampled ids to a message; the ledger it leaves is what trains.
Rendering is render.py's, the spelling of tool calls syntax.py's, sampling the engine's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np

from agentgym.engines.base import Engine, Sampling
from agentgym.engines.causal import CausalLM, load_model, load_tokenizer
from agentgym.engines.local import LocalEngine
from agentgym.env import Observation
from agentgym.errors import ConfigError
from agentgym.ledger import IntArray, Ledger, Segment, Source
from agentgym.messages import Message, assistant, system, user
from agentgym.policies.render import Renderer
from agentgym.syntax import Syntax, get_syntax

MASK64 = (1 << 64) - 1
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


class LocalPolicy:
    """An engine, a renderer and a syntax, serving any number of episodes at once."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        *,
        chat: ChatFormat | None = None,
        temperature: float = 1.0,
        max_tokens: int = 256,
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.chat = chat or ChatFormat()
        self.syntax: Syntax = get_syntax(self.chat.syntax)
        self.sampling = Sampling(0, max_tokens, temperature, renderer.stop_ids)

    def begin(self, env: gymnasium.Env, *, seed: int) -> LocalActor:
        return LocalActor(self, self.engine.open(), seed)

    def at(self, temperature: float) -> LocalPolicy:
        """The same model sampled at another temperature; 0 is greedy."""
        return LocalPolicy(
            self.engine, self.renderer, chat=self.chat, temperature=temperature, max_tokens=self.sampling.max_tokens
        )


class LocalActor:
    """One episode: its chat, its ledger, its session in the engine."""

    def __init__(self, policy: LocalPolicy, session: int, seed: int) -> None:
        self.policy = policy
        self.ledger = Ledger()
        self._session = session
        self._seed = seed
        self._turn = 0
        self._chat = Transcript(policy.renderer, policy.syntax, policy.chat)

    async def act(self, observation: Observation) -> Message:
        policy = self.policy
        for segment in self._chat.observe(observation, self._turn):
            self.ledger.append(segment)
        # Seeds come from (episode, turn) alone, so that no two requests of a run share a stream.
        sampling = replace(policy.sampling, seed=(self._seed * 0x9E3779B97F4A7C15 + self._turn) & MASK64)
        made = await policy.engine.generate(self._session, self._chat.ids, sampling)
        if made.finish_reason == "context" and not len(made.ids):
            return {**assistant(), "finish_reason": "context", "num_tokens": 0}
        ids = tuple(made.ids.tolist())
        for version, start, stop in made.spans():
            self.ledger.append(
                Segment(made.ids[start:stop], Source.SAMPLED, self._turn, made.logprobs[start:stop], version)
            )
        message = self._chat.reply(ids, stopped=made.finish_reason == "stop")
        self._turn += 1
        return {**message, "finish_reason": made.finish_reason, "num_tokens": len(ids)}

    async def close(self) -> None:
        self.policy.engine.close(self._session)


def as_ids(ids: Sequence[int]) -> IntArray:
    return np.array(ids, np.int32)


class Transcript:
    """A chat and its ids, kept in step: observations are rendered, replies are taken as they were sampled."""

    def __init__(self, renderer: Renderer, syntax: Syntax, chat: ChatFormat) -> None:
        self.renderer = renderer
        self.syntax = syntax
        self.chat = chat
        self.ids: list[int] = []
        self._messages: list[Message] = []
        self._tools: list[dict] | None = None
        self._stopped_by: int | None = None
        self._parse: Callable[[str], Message] = syntax.parse

    def observe(self, observation: Observation, turn: int) -> list[Segment]:
        """Take in what the environment said; the segments it adds to the ledger."""
        new = list(observation["messages"])
        tools = observation["tools"]
        if not self._messages:
            self._open(new, tools)
            self.ids = list(self.renderer.open(self._messages, self._tools))
            return [Segment(as_ids(self.ids), Source.OBSERVED, turn)]
        if tools is not None and self.chat.tools != "hidden":
            new = self._offer(new, tools)
        if not self.renderer.shows_results and any(m["role"] == "tool" for m in new):
            new = self._spelt(new)
        seen = self.renderer.extend(self._messages, new, self._tools, stopped_by=self._stopped_by)
        self._messages += new
        forks = seen.outcome == "fork"
        self.ids[0 if forks else len(self.ids) :] = seen.ids
        return [Segment(as_ids(seen.ids), Source.OBSERVED, turn, forks=forks)] if seen.ids else []

    def reply(self, ids: tuple[int, ...], *, stopped: bool) -> Message:
        """Take in what the policy sampled; the message it means."""
        self.ids += ids
        self._stopped_by = ids[-1] if stopped else None
        text = self.renderer.decode(ids[:-1] if stopped else ids)
        self._messages.append(assistant(text))
        return deepcopy(self._parse(text))

    def write(self, text: str, turn: int) -> list[Segment]:
        """Take in a reply that somebody wrote, as a policy would have sampled it."""
        ids = self.renderer.written(text)
        self.ids += ids
        self._stopped_by = ids[-1]
        self._messages.append(assistant(text))
        return [Segment(as_ids(ids), Source.WRITTEN, turn)]

    def _open(self, new: list[Message], tools: list[dict] | None) -> None:
        self._messages = new
        if self.chat.tools == "hidden" or not tools:
            return
        if self.renderer.shows_tools:
            self._tools = tools
            return
        about = self.syntax.instructions(tools)
        if new and new[0]["role"] == "system":
            self._messages = [system(f"{new[0]['content']}\n\n{about}"), *new[1:]]
        else:
            self._messages = [system(about), *new]

    def _spelt(self, new: list[Message]) -> list[Message]:
        """Results in the user's words, for a template that shows none; all in one message, since most such templates
        want the roles to alternate."""
        return [user("\n".join(map(self.syntax.reply, new)))]

    def _offer(self, new: list[Message], tools: list[dict]) -> list[Message]:
        """Tools changed in the middle: say so in text, which only appends."""
        return [*new, {"role": "user", "content": "The tools are now:\n" + self.syntax.instructions(tools)}]


def load_policy(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    temperature: float = 1.0,
    max_tokens: int = 256,
    max_context: int | None = None,
) -> LocalPolicy:
    """A policy from a model folder (or hub name) with its own tokenizer and chat template."""
    lm = CausalLM(load_model(name, device=device, dtype=dtype).eval())
    engine = LocalEngine(lm, max_context=max_context)
    chat = ChatFormat.load(name)
    return LocalPolicy(
        engine, Renderer(load_tokenizer(name)), chat=chat, temperature=temperature, max_tokens=max_tokens
    )
