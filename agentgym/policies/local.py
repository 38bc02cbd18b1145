"""A policy that samples tokens from an engine and remembers exactly which.

Owns the step from observation to ids and from sampled ids to a message; the ledger it leaves is what trains.
The chat and its ids are transcript.py's, what of it is still shown context.py's, the spelling of tool calls
syntax.py's, sampling the engine's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import gymnasium
import numpy as np

from agentgym.engines.base import Engine, Generation, Sampling
from agentgym.engines.causal import CausalLM, load_model, load_tokenizer
from agentgym.engines.local import LocalEngine
from agentgym.env import Observation
from agentgym.ledger import Ledger, Segment, Source
from agentgym.messages import Message, assistant
from agentgym.policies.context import Context, ContextConfig, without_thought
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, Transcript
from agentgym.syntax import Syntax, get_syntax

MASK64 = (1 << 64) - 1
NOTES_STREAM = 1 << 32  # beyond every turn: the notes written in a turn share no seed with a reply


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
        top_p: float = 1.0,
        context: ContextConfig = ContextConfig(),  # noqa: B008  frozen
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.chat = chat or ChatFormat()
        self.syntax: Syntax = get_syntax(self.chat.syntax)
        self.sampling = Sampling(0, max_tokens, temperature, renderer.stop_ids, top_p)
        self.context = context
        self.budget = context.budget(engine.max_context, max_tokens)

    def begin(self, env: gymnasium.Env, *, seed: int) -> LocalActor:
        return LocalActor(self, self.engine.open(), seed)

    def at(self, temperature: float) -> LocalPolicy:
        """The same model sampled at another temperature; 0 is greedy."""
        return LocalPolicy(
            self.engine,
            self.renderer,
            chat=self.chat,
            temperature=temperature,
            max_tokens=self.sampling.max_tokens,
            top_p=self.sampling.top_p,
            context=self.context,
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
        self._context: Context | None = None
        if policy.budget is not None:
            self._context = Context(policy.context, self._chat, policy.budget, policy.sampling.max_tokens)

    async def act(self, observation: Observation) -> Message:
        view, num_notes = self._chat.look(observation), 0
        if self._context is not None and self._context.is_due(view):
            notes = ""
            if self.policy.context.context == "summarise":
                self._record(self._chat.observe(self._context.request(), self._turn))
                made = await self._sample(NOTES_STREAM)
                num_notes = len(made.ids)
                if not num_notes:
                    return _full(0)
                notes = without_thought(self._take(made)["content"])
            view = self._context.rewritten(view, notes)
        self._record(self._chat.take(view, self._turn))
        made = await self._sample()
        if made.finish_reason == "context" and not len(made.ids):
            return _full(num_notes)
        message = self._take(made)
        self._turn += 1
        return {**message, "finish_reason": made.finish_reason, "num_tokens": num_notes + len(made.ids)}

    async def _sample(self, stream: int = 0) -> Generation:
        """Continue the chat within the budget."""
        policy, limit = self.policy, self.policy.sampling.max_tokens
        if policy.budget is not None:
            limit = min(limit, policy.budget - len(self._chat.ids))
            if limit < 1:
                return Generation(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32), "context")
        # Seeds come from (episode, turn) alone, so that no two requests of a run share a stream.
        seed = (self._seed * 0x9E3779B97F4A7C15 + self._turn + stream) & MASK64
        sampling = replace(policy.sampling, seed=seed, max_tokens=limit)
        made = await policy.engine.generate(self._session, self._chat.ids, sampling)
        if made.finish_reason == "length" and len(made.ids) < policy.sampling.max_tokens:
            return replace(made, finish_reason="context")
        return made

    def _take(self, made: Generation) -> Message:
        """Record what was sampled; the message it means."""
        self._record(
            Segment(made.ids[a:b], Source.SAMPLED, self._turn, made.logprobs[a:b], version)
            for version, a, b in made.spans()
        )
        return self._chat.reply(tuple(made.ids.tolist()), stopped=made.finish_reason == "stop")

    def _record(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self.ledger.append(segment)

    async def close(self) -> None:
        self.policy.engine.close(self._session)


def _full(num_tokens: int) -> Message:
    """The reply of a policy whose context has no room for one."""
    return {**assistant(), "finish_reason": "context", "num_tokens": num_tokens}


def load_policy(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    temperature: float = 1.0,
    max_tokens: int = 256,
    top_p: float = 1.0,
    max_context: int | None = None,
    context: ContextConfig = ContextConfig(),  # noqa: B008  frozen
) -> LocalPolicy:
    """A policy from a model folder (or hub name) with its own tokenizer and chat template."""
    lm = CausalLM(load_model(name, device=device, dtype=dtype).eval())
    engine = LocalEngine(lm, max_context=max_context)
    chat = ChatFormat.load(name)
    renderer = Renderer(load_tokenizer(name))
    return LocalPolicy(
        engine, renderer, chat=chat, temperature=temperature, max_tokens=max_tokens, top_p=top_p, context=context
    )
