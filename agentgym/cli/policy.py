"""Which policy a command plays: a model behind a server, one in a folder or on the hub, a function, or a built-in one.

Owns the flags that say so and what is made of them; what each kind does is policies/'s business."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import tyro

from agentgym.cli.options import settings
from agentgym.engines.base import Sampling
from agentgym.errors import ConfigError, nearest
from agentgym.plugins import function_at
from agentgym.policies import compute
from agentgym.policies.base import Policy
from agentgym.policies.builtin import NAMES, builtin
from agentgym.policies.context import ContextConfig

# What a resumed run may be told anew: who computes, and not what.
MAY_CHANGE = ("base_url", "timeout_s", "num_parameters", "device", "concurrency", "output", "resume", "json")


@dataclass(frozen=True)
class PolicyConfig:
    """A policy, and how its replies are drawn."""

    model: Annotated[str, tyro.conf.arg(metavar="PATH|NAME|module:function|gold|nop|random|human|…")] = "gold"
    """model folder (or hub name), what a server calls its model, a function of your own, or a built-in policy"""
    base_url: str | None = None
    """address of an OpenAI-compatible server that has the model (…/v1); its key is OPENAI_API_KEY"""
    tool_calls: str = "native"
    """how a served model calls tools: native, or spelt in its text as hermes, xml, react or code"""
    extra: tuple[str, ...] = ()
    """more settings for the server, name=JSON; null keeps one from being sent: --extra seed=null"""
    timeout_s: float = 600.0
    """longest wait for one reply of a server"""
    num_parameters: int | None = None
    """of a served model, to count FLOPs"""
    temperature: float = 1.0
    """sampling temperature; 0 is greedy"""
    top_p: float = 1.0
    """draw from the likeliest tokens that have so much of the probability together"""
    max_tokens: int = 256
    """most tokens per message"""
    device: str = "cpu"
    """where the model runs: cpu or cuda"""
    best_of: int = 1
    """replies per message, of which the --verifier's best counts"""
    verifier: str | None = None
    """module:function that says how good a reply is: (messages, reply) -> number"""
    majority: int = 1
    """replies per message, of which the one that most agree on counts"""
    think_again: int = 0
    """times the policy is told to check itself before a reply counts"""

    def __post_init__(self) -> None:
        for name, low in (("max_tokens", 1), ("timeout_s", 1), ("best_of", 1), ("majority", 1), ("think_again", 0)):
            if not low <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least {low}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature}: give 0 (greedy) or more")
        if self.num_parameters is not None and self.num_parameters < 1:
            raise ConfigError(f"--num-parameters {self.num_parameters}: give at least 1, or leave it out")
        Sampling(0, top_p=self.top_p)
        if sum((self.best_of > 1, self.majority > 1, self.think_again > 0)) > 1:
            raise ConfigError("--best-of, --majority and --think-again: give one of them, or wrap a policy yourself")
        if (self.best_of > 1) != (self.verifier is not None):
            raise ConfigError("--best-of N and --verifier module:function go together: give both, or neither")

    @property
    def is_function(self) -> bool:
        return self.base_url is None and ":" in self.model and not Path(self.model).exists()

    @cached_property  # the verifier's module runs once
    def plan(self) -> compute.Plan | None:
        """More than one reply for a message, where it is asked for."""
        if self.verifier is not None:
            return compute.BestOf(self.best_of, function_at(self.verifier))
        if self.majority > 1:
            return compute.Majority(self.majority)
        return compute.Forced(self.think_again) if self.think_again else None


def load_policy(config: PolicyConfig, view: ContextConfig, concurrency: int) -> Policy:
    """The policy that is meant. Raises ConfigError for flags that change nothing for it, and for a verifier that is
    none."""
    _ = config.plan
    model, is_chat = config.model, config.base_url is not None or config.is_function
    for flag, is_used, is_set in (
        ("--context", not is_chat and model not in NAMES, view != ContextConfig()),
        ("--tool-calls", is_chat, config.tool_calls != PolicyConfig.tool_calls),
        ("--extra", config.base_url is not None, config.extra != ()),
    ):
        if is_set and not is_used:
            raise ConfigError(f"{flag} changes nothing for --model {model}; leave it out")
    if config.base_url is not None:
        from agentgym.chat import ChatClient  # noqa: PLC0415  httpx: 90 ms
        from agentgym.policies.http import ChatPolicy  # noqa: PLC0415

        extra = {"top_p": config.top_p} if config.top_p != 1 else {}
        client = ChatClient(
            config.base_url, model, temperature=config.temperature, max_tokens=config.max_tokens,
            timeout_s=config.timeout_s, concurrency=concurrency, extra=extra | settings(config.extra, "--extra"),
        )  # fmt: skip
        return ChatPolicy(client, tool_calls=config.tool_calls)
    if model in NAMES:
        return builtin(model)
    if config.is_function:
        from agentgym.policies.http import ChatPolicy, from_function  # noqa: PLC0415  httpx: 90 ms

        return ChatPolicy(from_function(function_at(model)), tool_calls=config.tool_calls)
    if "/" not in model and not Path(model).exists():
        raise ConfigError(
            f"--model {model!r}: no such folder, and no built-in policy{nearest(model, NAMES)} Give a model folder, "
            f"module:function, a served model with its --base-url, or one of {', '.join(NAMES)}"
        )
    from agentgym.policies import local  # noqa: PLC0415  torch and transformers: seconds, and optional

    return local.load_policy(
        model, device=config.device, temperature=config.temperature, max_tokens=config.max_tokens,
        top_p=config.top_p, context=view,
    )  # fmt: skip


def size_of(config: PolicyConfig, policy: Policy) -> int | None:
    """Parameters of the model, where they are known."""
    lm = getattr(getattr(policy, "engine", None), "lm", None)
    return config.num_parameters if lm is None else lm.model.num_parameters()
