"""agentgym's half of learner_vs_trl.py's step, in a process of its own so that its peak memory is its own.

Trains by the loop that `agentgym train` runs (driver, engine, store, audit), one update per line on stdin."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import gymnasium
import torch
import transformers
from learner_vs_trl_common import filled, peak_kib, say

from agentgym import AgentEnv, Rubric, Task, TaskSet, register
from agentgym.engines.causal import CausalLM, load_model, load_tokenizer
from agentgym.engines.local import LocalEngine
from agentgym.env import Observation
from agentgym.learner.checkpoint import Checkpoints
from agentgym.learner.loop import LoopConfig, Trainer
from agentgym.learner.metrics import MetricsLog
from agentgym.learner.sampler import CurriculumConfig, Sampler
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig
from agentgym.loop import run_sync
from agentgym.messages import Message
from agentgym.policies.local import LocalActor, LocalPolicy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, Transcript
from agentgym.rollout.driver import Driver
from agentgym.rollout.store import Store


def spread(outcome: Any) -> float:
    """Some number that no two replies share: every trajectory must have something to teach."""
    said = "".join(m["content"] for m in outcome.messages if m["role"] == "assistant")
    return sum(map(ord, said)) % 997 / 997


class World(AgentEnv):
    """Answers every message with the same text, until the turns are over."""

    rubric = Rubric(spread=spread)
    blocking = False
    told = ""

    def respond(self, message: Any) -> str:
        return self.told


class Actor(LocalActor):
    """A turn of so many tokens is a whole turn here: elsewhere a reply that was cut ends the episode."""

    async def act(self, observation: Observation) -> Message:
        return {**await super().act(observation), "finish_reason": "stop"}


class Policy(LocalPolicy):
    def begin(self, env: gymnasium.Env, *, seed: int) -> Actor:
        return Actor(self, self.engine.open(), seed)


class Rounds:
    """Waits for a line before each update and tells what the update took."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work
        self.began = 0.0

    def wait(self) -> None:
        sys.stdin.readline()
        self.began = perf_counter()

    def on_update(self, line: dict[str, Any]) -> None:
        step_s = perf_counter() - self.began
        say("STEP", {"step_s": step_s, "update_s": line["seconds_learn"], "rollout_s": line["seconds_generate"],
                     "generate_s": line["seconds_generate"] - line["seconds_env"], "peak_kib": peak_kib(),
                     "sampled": line["tokens_sampled"], "trained": int(line["tokens_trained"]),
                     "cells": self.cells()})  # fmt: skip
        self.wait()

    def cells(self) -> int:
        """Of the rows that went through the model, each without the observation that nobody answered."""
        turns, each = self.work["turns"], self.work["sampled"] + self.work["observed"]
        return self.work["group_size"] * (self.work["prompt"] + turns * each - self.work["observed"])


def steps(folder: Path) -> None:
    work = json.loads((folder / "work.json").read_text())["step"]
    torch.set_num_threads(work["threads"])
    lm = CausalLM(load_model(str(folder / "tiny")).eval())
    engine = LocalEngine(lm)
    policy = Policy(engine, Renderer(load_tokenizer(str(folder / "tiny"))), chat=ChatFormat(tools="hidden"))
    policy.sampling = replace(policy.sampling, max_tokens=work["sampled"], stop_ids=())
    fit(policy, work)
    World.max_turns = work["turns"]
    register("bench/World-v0", f"{__name__}:World")
    config = LoopConfig(updates=work["steps"], groups=1, group_size=work["group_size"], minibatches=1,
                        checkpoint_every=work["steps"] + 1)  # fmt: skip
    optimizer = OptimizerConfig(lr=work["lr"], microbatch_tokens=work["microbatch_tokens"])
    learner = Learner(lm, optimizer, total_steps=work["steps"])
    rounds = Rounds(work)
    with TemporaryDirectory() as run:
        store = Store(Path(run) / "run.sqlite")
        driver = Driver("bench/World-v0", policy, run="train", store=store)
        say("READY", {"kib": peak_kib(), "versions": {name: version(name) for name in ("transformers", "torch")}})
        rounds.wait()
        trainer = Trainer(
            driver, policy, lm, learner, Sampler(World.tasks.split("train"), CurriculumConfig(), seed=0), config,
            ObjectiveConfig(), Checkpoints(Path(run) / "checkpoints"),
            MetricsLog(Path(run) / "metrics.jsonl", updates_done=0), {}, on_update=rounds.on_update,
        )  # fmt: skip
        run_sync(trainer.run(0))
        driver.close()
        engine.shutdown()
        store.close()


def fit(policy: LocalPolicy, work: dict[str, Any]) -> None:
    """Choose texts so that the prompt and an observation have exactly the tokens wanted."""

    def observed(*texts: str) -> int:
        chat = Transcript(policy.renderer, policy.syntax, policy.chat)
        for turn, text in enumerate(texts):
            (segment,) = chat.observe({"messages": [{"role": "user", "content": text}], "tools": None}, turn)
            chat.reply((policy.renderer.stop_ids[0],) * 2, stopped=False)
        return len(segment)

    World.tasks = TaskSet({"train": [Task(filled(observed, work["prompt"]), "")]})
    World.told = filled(lambda text: observed("a", text), work["observed"])


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    steps(Path(sys.argv[1]))
