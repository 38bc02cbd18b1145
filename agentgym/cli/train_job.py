"""The training job: warm start, evaluate, reinforce, control, evaluate again, report.

Owns the order of the phases and what the summary says. Each part is done by its owner: learner/, evaluation/,
viewer/. A finished phase is kept in the checkpoint, so that a resumed run repeats none."""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentgym.cli.folder import write
from agentgym.cli.lock import locked
from agentgym.cli.options import as_dict
from agentgym.cli.train_controls import CONTROLS, run_controls
from agentgym.cli.train_summary import before_and_after, by_horizon, control_figures, spent, table, update_line
from agentgym.cli.versions import versions
from agentgym.engines.causal import CausalLM, load_model, load_tokenizer
from agentgym.engines.local import LocalEngine
from agentgym.env import AgentEnv
from agentgym.errors import ConfigError, InfrastructureError
from agentgym.evaluation.horizon import half_horizon
from agentgym.evaluation.intervals import wilson
from agentgym.evaluation.run import Evaluation, evaluate
from agentgym.learner.checkpoint import Checkpoints, save_model, weights_hash
from agentgym.learner.distributed import Ranks
from agentgym.learner.loop import Trainer
from agentgym.learner.lora import add_adapters
from agentgym.learner.metrics import MetricsLog, read_metrics
from agentgym.learner.sampler import Sampler
from agentgym.learner.scratch import scratch_model, scratch_tokenizer
from agentgym.learner.update import Learner
from agentgym.learner.warm_start import warm_start
from agentgym.ledger import Episode, Ledger
from agentgym.loop import run_sync
from agentgym.policies.builtin import builtin
from agentgym.policies.local import LocalPolicy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, written_ledger
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot, derive_seed
from agentgym.rollout.store import Store
from agentgym.syntax import get_syntax
from agentgym.viewer.report import write_report

if TYPE_CHECKING:
    from agentgym.cli.train import TrainConfig

RETRIES = 3  # of a start that fails by chance
DEMONSTRATION_TURNS = 64  # a demonstrator is stopped by its own giving up, not by the agent's limit


class Job:
    """One run in one folder. `run` goes through the phases that are not yet done."""

    def __init__(self, config: TrainConfig, folder: Path, ranks: Ranks) -> None:
        self.config = config
        self.folder = folder
        self.ranks = ranks
        self.console = Console(stderr=False, highlight=False, quiet=not ranks.leads)
        self._lock = locked(folder) if ranks.leads else None
        self.store = Store(folder / "run.sqlite") if ranks.leads else None
        self.checkpoints = Checkpoints(
            folder / "checkpoints", keep=config.loop.keep_checkpoints, beside=self._save_speech
        )
        self.progress: dict[str, Any] = {}
        self._drivers: list[Driver] = []

    def run(self) -> None:
        """All phases in order. Interrupted or killed anywhere, the next call goes on."""
        config = self.config
        self.env = make(config.env, **config.env_kwargs(split="train"))
        ledgers = self._prepare()
        state = self.checkpoints.load(self.learner)
        if state is None:
            with self._timed("warm_start"):
                self._imitate(ledgers, config.warm.warm_steps, "warm start")
            self.learner = self._new_learner()
            state = (0, self.progress)
            self._save(0)
        done, self.progress = state
        self.learner.publish(self.lm)
        if "before" not in self.progress:
            self.progress["before"] = self._evaluate("before")
            self._save(done)
        self._reinforce(done)
        if "after" not in self.progress:
            self.progress["after"] = self._evaluate("after")
            self.progress["weights"] = weights_hash(self.lm)
            if self.ranks.leads:
                save_model(self.lm, self.folder / "model", beside=self._save_speech)
            self._save(config.loop.updates)
        if config.control_steps and "control" not in self.progress:
            self._control(ledgers)
            self._save(config.loop.updates)
        if self.ranks.leads:
            if config.controls and "controls" not in self.progress:
                self._finish()  # the claim stands while its controls run
                with self._bar(f"controls: {', '.join(CONTROLS)}", 1):
                    self.progress["controls"] = run_controls(config, self.folder)
                self._save(config.loop.updates)
            self._finish()

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()
        if hasattr(self, "engine"):
            self.engine.shutdown()
        if self.store is not None:
            self.store.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- phases -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> list[Ledger]:
        """Model, tokenizer, engine and policy; and the demonstrations, where the model is to imitate."""
        config, chat = self.config, ChatFormat(self.config.syntax or "hermes")
        if config.credit_needs_states and not self._names_states():
            raise ConfigError(
                f"credit {config.loop.credit} needs state_key(), which {config.env} lacks; use leave_one_out"
            )
        episodes: list[Episode] = []
        if config.warm.warm_steps and (config.model is None or config.warm.imitate_always):
            with self._timed("demonstrations"):
                episodes = self._demonstrations()
        if config.model is None:
            if not episodes:
                raise ConfigError(f"{config.env} has no demonstrator to imitate; give --model, a model that can speak")
            chat = ChatFormat(config.syntax or "hermes", tools="hidden")
            tokenizer = scratch_tokenizer(_texts(episodes, chat.syntax), vocabulary=config.scratch.vocabulary)
            model: Any = scratch_model(tokenizer, config.scratch, seed=derive_seed(config.seed, "weights"))
            model = model.to(self.ranks.device)
        else:
            tokenizer = load_tokenizer(config.model)
            model = load_model(config.model, device=str(self.ranks.device), dtype=config.dtype)
            chat = ChatFormat.load(config.model)
            if config.syntax is not None and config.syntax != chat.syntax and chat != ChatFormat():
                raise ConfigError(f"--syntax {config.syntax}: {config.model} was taught {chat.syntax}; leave it out")
            chat = replace(chat, syntax=config.syntax or chat.syntax)
        self.chat = chat
        if config.lora.lora_rank:
            add_adapters(model, config.lora, seed=derive_seed(config.seed, "adapters"))
        self.lm = CausalLM(model)
        self.engine = LocalEngine(self.lm)
        self.renderer = Renderer(tokenizer)
        if config.history == "extend" and not self.renderer.only_appends:
            raise ConfigError(
                f"history extend: the chat template of {config.model} rewrites what went before (thoughts dropped, text"
                " trimmed), so a token that was sampled would be read as another; take --history fork"
            )
        self.policy = LocalPolicy(
            self.engine, self.renderer, chat=chat, temperature=config.temperature, max_tokens=config.max_tokens,
            context=config.view,
        )  # fmt: skip
        self._initial = {k: v.clone() for k, v in model.state_dict().items()} if config.control_steps else {}
        self.learner = self._new_learner()
        tools = self._tools()
        return [written_ledger(e.messages, self.renderer, chat, tools) for e in episodes]

    def _demonstrations(self) -> list[Episode]:
        """Episodes of the environment's own weak demonstrator, on tasks that nobody trains or is tested on."""
        config = self.config
        kwargs = config.env_kwargs(split="demonstrations", max_turns=DEMONSTRATION_TURNS)
        if config.warm.warm_horizon:
            kwargs["horizon"] = list(config.warm.warm_horizon)
        env = make(config.env, **kwargs)
        split = env.unwrapped.tasks.split("demonstrations")  # type: ignore[attr-defined]
        tasks = [split.id(i % len(split)) for i in range(config.warm.demonstrations)]
        env.close()
        seen: Counter[str] = Counter()
        slots = []
        for group, task_id in enumerate(tasks):  # a small split repeats its tasks, each time played anew
            slots.append(Slot(task_id, seen[task_id], group, derive_seed(config.seed, task_id) >> 32))
            seen[task_id] += 1
        driver = self._driver(builtin("demonstrator"), "demonstrations", kwargs, store=None, concurrency=64)
        with self._bar("demonstrations", len(slots)) as advance:
            episodes = run_sync(driver.collect(slots, on_episode=lambda _: advance()))
        if "failure" in {e.stop_reason for e in episodes}:
            raise ConfigError(f"{config.env}: a demonstration failed: {next(e.failure for e in episodes if e.failure)}")
        inside = [e for e in episodes if not self._trained() or e.metadata.get("horizon") in self._trained()]
        self.progress["demonstrator"] = wilson(sum(e.success for e in inside), len(inside)).as_json()
        return episodes

    def _imitate(self, ledgers: Sequence[Ledger], steps: int, name: str) -> None:
        if not ledgers or not steps:
            return
        config, seed = self.config.warm, derive_seed(self.config.seed, name) >> 32
        with self._bar(name, steps) as advance:
            warm_start(
                self.lm, ledgers, config, seed=seed, steps=steps, progress=lambda _, loss: advance(f"loss {loss:.3f}")
            )

    def _reinforce(self, done: int) -> None:
        """Updates `done`.. to the end."""
        config = self.config
        if done >= config.loop.updates:
            return
        if self.store is not None:
            self.store.reopen("train", from_update=done + len(self.progress.get("ahead", [])))
        metrics = MetricsLog(self.folder / "metrics.jsonl", updates_done=done, writes=self.ranks.leads)
        driver = self._driver(self.policy, "train", config.env_kwargs(split="train"), store=self.store)
        split = self.env.unwrapped.tasks.split("train")  # type: ignore[attr-defined]
        with self._bar("updates", config.loop.updates, done) as advance:

            def told(line: dict[str, Any]) -> None:
                self.console.print(update_line(line, config.loop.updates), soft_wrap=True)
                advance(f"success {line['success']:.0%}")

            trainer = Trainer(
                driver, self.policy, self.lm, self.learner, Sampler(split, config.curriculum, seed=config.seed),
                config.loop, config.objective, self.checkpoints, metrics, self.progress,
                selection=config.selection, alarms=config.alarm, on_update=told,
            )  # fmt: skip
            run_sync(trainer.run(done))

    def _evaluate(self, phase: str, horizons: Sequence[int] | None = None) -> dict[str, Any]:
        """Held-out tasks by horizon, sampled as in training and greedy; by the leader, for all."""
        found = None if self.store is None else self._evaluated(phase, horizons, self.store)
        return self.ranks.from_leader(found)

    def _evaluated(self, phase: str, horizons: Sequence[int] | None, store: Store) -> dict[str, Any]:
        config = self.config
        horizons = config.test_horizon or config.horizon if horizons is None else horizons
        found: dict[str, Any] = {}
        run_sync(self.engine.push(self.learner.version))
        with self._timed("evaluate"):
            for name, policy in ((phase, self.policy), (f"{phase}-greedy", self.policy.at(0.0))):
                store.reopen(name, from_update=0)  # which episodes share a batch must not depend on a kill
                with self._bar(name, 1) as advance:
                    result: Evaluation = run_sync(
                        evaluate(
                            config.env, policy, store=store, run=name, split="test", horizons=horizons,
                            limit=config.eval_limit, start=config.eval_start, seed=config.seed,
                            concurrency=config.concurrency, env_kwargs=config.env_kwargs(),
                            progress=lambda n, total: advance(at=n, total=total),
                        )
                    )  # fmt: skip
                if not result.num_scored:
                    failure = next(e.failure for e in store.episodes(run=name))
                    raise InfrastructureError(f"evaluation {name}: no episode could be scored; the first: {failure}")
                found[name.removeprefix(phase).lstrip("-") or "sampled"] = self._figures(result)
        return found

    def _figures(self, result: Evaluation) -> dict[str, Any]:
        """By horizon, the trained range together, and the 50 % horizon."""
        trained = self._trained()
        points = [p.as_json() for p in result.by_horizon]
        inside = [p for p in points if p["horizon"] in trained] or points
        whole = wilson(sum(p["successes"] for p in inside), sum(p["n"] for p in inside))
        figures = {"overall": whole.as_json(), "points": points, "coverage": result.coverage}
        if points:
            figures["h50"] = half_horizon(result.by_horizon).as_json()
        return figures

    def _control(self, ledgers: Sequence[Ledger]) -> None:
        """As much compute on imitation alone: the same start, more steps of it, and no reinforcement."""
        config = self.config
        if not ledgers:
            return
        ours = {k: v.clone() for k, v in self.lm.model.state_dict().items()}
        self.lm.model.load_state_dict(self._initial)
        with self._timed("control"):
            self._imitate(ledgers, config.control_steps, "control")
        self.progress["control"] = self._evaluate("control", config.horizon)
        self.lm.model.load_state_dict(ours)

    # -- summary ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        summary = self._summary()
        write(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        report = write_report(self.folder)
        self.console.print()
        for name, value in table(summary):
            self.console.print(f"{name:<38}{value}", soft_wrap=True)
        self.console.print(
            f"\nreport   {report}\nsummary  {self.folder / 'summary.json'}\nmodel    {self.folder / 'model'}",
            soft_wrap=True,
        )

    def _summary(self) -> dict[str, Any]:
        config, p = self.config, self.progress
        before, after, seconds = p["before"], p["after"], p["seconds"]
        train_s = p.get("seconds_train", 0.0)
        updates = read_metrics(self.folder / "metrics.jsonl")
        waited_s = sum(update.get("seconds_env", 0.0) for update in updates)
        num_parameters = sum(w.numel() for w in self.lm.model.parameters())
        cost = spent(updates, num_parameters)
        return {
            "env": config.env,
            "seed": config.seed,
            "model": config.model or "scratch",
            "num_parameters": num_parameters,
            **before_and_after("success", "ci", before["sampled"], after["sampled"]),
            **before_and_after("greedy", "ci_greedy", before["greedy"], after["greedy"]),
            "by_horizon": by_horizon(before, after, self._trained()),
            "h50_before": before["sampled"].get("h50"),
            "h50_after": after["sampled"].get("h50"),
            "h50_greedy_after": after["greedy"].get("h50"),
            "demonstrator": p.get("demonstrator"),
            "control": control_figures(p, seconds),
            "controls": p.get("controls"),
            "updates": config.loop.updates,
            "weights": p["weights"],
            "seconds_warm_start": seconds.get("demonstrations", 0.0) + seconds.get("warm_start", 0.0),
            "seconds_train": train_s,
            "seconds_evaluate": seconds.get("evaluate", 0.0),
            "seconds_control": seconds.get("control", 0.0),
            "seconds_total": sum(seconds.values()) + train_s,
            "peak_rss_bytes": p["peak_rss_bytes"],
            **cost,
            "tokens_per_second": cost["sampled_tokens"] / train_s if train_s else 0.0,
            "env_share": waited_s / train_s if train_s else 0.0,
            "versions": versions(),
            "config": as_dict(config),
        }

    # -- small things -----------------------------------------------------------------------------------------------

    def _new_learner(self) -> Learner:
        """Trains the engine's own weights, or a copy where these are sharded or change while the engine samples."""
        config, ranks, lm = self.config, self.ranks, self.lm
        if ranks.size > 1 or config.loop.staleness:
            model = deepcopy(self.lm.model)
            lm = CausalLM(model.float() if ranks.size > 1 else model)
        return Learner(
            lm, config.optimizer, total_steps=config.loop.updates * config.loop.minibatches, ranks=ranks,
            anchored=config.objective.needs_reference, compute_dtype=self.lm.model.dtype,
        )  # fmt: skip

    def _save_speech(self, folder: Path) -> None:
        """What a model's folder needs beside its weights."""
        self.renderer.tokenizer.save_pretrained(folder)
        self.chat.save(folder)

    def _driver(
        self, policy: Any, run: str, kwargs: dict[str, Any], *, store: Store | None, concurrency: int | None = None
    ) -> Driver:
        driver = Driver(
            self.config.env, policy, run=run, env_kwargs=kwargs, store=store,
            concurrency=concurrency or self.config.concurrency,
        )  # fmt: skip
        self._drivers.append(driver)
        return driver

    def _names_states(self) -> bool:
        return type(self.env.unwrapped).state_key is not AgentEnv.state_key  # type: ignore[attr-defined]

    def _tools(self) -> list[dict] | None:
        """What is on offer at the start. A world may fail to be built by chance."""
        for seed in range(RETRIES):
            try:
                return self.env.reset(seed=seed)[0]["tools"]
            except InfrastructureError:
                continue
        return self.env.reset(seed=RETRIES)[0]["tools"]

    def _trained(self) -> set[int]:
        """Horizons of the training split: those asked for, or those its first tasks have."""
        if self.config.horizon:
            return set(self.config.horizon)
        split = self.env.unwrapped.tasks.split("train")  # type: ignore[attr-defined]
        return {h for _, task in split.take(min(24, len(split))) if (h := task.horizon) is not None}

    def _save(self, done: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.progress["peak_rss_bytes"] = max(peak, self.progress.get("peak_rss_bytes", 0))
        self.checkpoints.save(self.learner, done, self.progress)

    @contextmanager
    def _timed(self, phase: str):
        began = perf_counter()
        yield
        seconds = self.progress.setdefault("seconds", {})
        seconds[phase] = seconds.get(phase, 0.0) + perf_counter() - began

    @contextmanager
    def _bar(self, name: str, total: int, done: int = 0):
        """A progress bar with rate and time left; yields a function that advances it."""
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        columns += (TimeElapsedColumn(), TimeRemainingColumn())
        is_terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not is_terminal) as bar:
            task = bar.add_task(name, total=total, completed=done, note="")

            def advance(note: str = "", *, at: int | None = None, total: int | None = None) -> None:
                if at is None:
                    bar.advance(task)
                bar.update(task, completed=at, total=total, note=note)

            yield advance
        if not is_terminal:
            self.console.print(f"{name}: done")


def _texts(episodes: Sequence[Episode], syntax: str) -> list[str]:
    spell = get_syntax(syntax).format
    return [spell(m) if m["role"] == "assistant" else m["content"] for e in episodes for m in e.messages]
