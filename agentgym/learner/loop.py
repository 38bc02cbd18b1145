"""The training loop: collect, credit, update, push, record.

Owns the order of things. Synchronous training is staleness zero: every batch is sampled under the weights it trains.
With staleness k the batch k updates ahead is sampled while this one trains, by a copy of the weights that changes
between batches only; so nothing is discarded, a batch is stale by k updates exactly, and which bits come out does not
depend on which side was faster. An update that was interrupted is collected again, whole, from the last checkpoint."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.learner.alarms import AlarmConfig, Alarms
from agentgym.learner.audit import AuditError, audit, mismatch
from agentgym.learner.checkpoint import Checkpoints
from agentgym.learner.controls import Reward, taught
from agentgym.learner.credit import NEEDS_GROUPS, get_credit
from agentgym.learner.metrics import MetricsLog, read_metrics
from agentgym.learner.pack import Trajectory
from agentgym.learner.probe import input_retrieval
from agentgym.learner.sampler import Sampler
from agentgym.learner.selection import Selected, SelectionConfig, has_signal, select
from agentgym.learner.update import Learner, NotFiniteError, ObjectiveConfig
from agentgym.ledger import Episode, FloatArray
from agentgym.policies.local import LocalPolicy
from agentgym.rollout.driver import Driver, Slot

MIN_COVERAGE = 0.5  # of an update's episodes; below it the run stops rather than train on what survives


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What one update is made of, and how many there are."""

    updates: int = 100
    """Updates in all."""
    groups: int = 24
    """Tasks per update; a multiple of the number of trained horizons keeps them balanced."""
    group_size: int = 8
    """Episodes per task and version; leave-one-out needs at least 2."""
    credit: str = "leave_one_out"
    """From rewards to advantages: leave_one_out, outcome_mean, grpo, dr_grpo, maxrl, rebn, same_state, gigpo; the last
    two per turn."""
    reward: Reward = "environment"
    """What the learner is told an episode is worth. The controls of a claim: random, a coin's; format, 1 where every
    message could be read. What is reported is the environment's all the same."""
    discount: float = 1.0
    """Of rewards, per turn: what is earned k turns later counts discount^k."""
    minibatches: int = 2
    """Optimiser steps per update, each on its share of the groups."""
    staleness: int = 0
    """Updates that a batch's weights are old when it trains: so many batches are sampled ahead, while others train."""
    max_mismatch: float = 1e-3
    """Stop where engine and learner differ by more nats than this on a token."""
    probe_every: int = 0
    """Updates between probes of whether first replies still depend on their prompts; 0 for none."""
    checkpoint_every: int = 10
    """Updates between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; the best one is kept besides."""

    def __post_init__(self) -> None:
        for name in ("updates", "groups", "minibatches", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < (name != "updates"):
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        get_credit(self.credit)
        if self.group_size < 1 + (self.credit in NEEDS_GROUPS):
            raise ConfigError(f"group_size is {self.group_size}; a group of one has no baseline, give at least 2")
        if self.groups % self.minibatches:
            raise ConfigError(
                f"groups {self.groups} cannot be shared by {self.minibatches} minibatches; give a multiple"
            )
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount is {self.discount}; give a number above 0 and up to 1")
        for name in ("staleness", "probe_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more updates")


@dataclass
class Trainer:
    """All that takes part in training, and where it stands. `progress` is saved with each checkpoint."""

    driver: Driver
    policy: LocalPolicy
    engine_lm: CausalLM
    """The weights that sample: the learner's own, or a copy."""
    learner: Learner
    sampler: Sampler
    config: LoopConfig
    objective: ObjectiveConfig
    checkpoints: Checkpoints
    metrics: MetricsLog
    progress: dict[str, Any]
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    on_update: Callable[[dict[str, Any]], None] | None = None
    _cut: BaseException | None = None  # what ended the sampling of a later batch
    _ahead: deque[list[Episode]] = field(default_factory=deque)  # batches that were sampled and not yet trained

    async def run(self, start: int) -> None:
        """Updates `start`..`config.updates`."""
        config, done, saved_version = self.config, start, self.learner.version
        watch, since = Alarms(self.alarms), list[float]()
        for line in self.learner.ranks.from_leader(read_metrics(self.metrics.path)):
            watch.seen(line)
        if "sampler" in self.progress:
            self.sampler.load(self.progress["sampler"])
        try:
            await self._push()
            for update in range(self._restored(start), min(start + config.staleness, config.updates)):
                self._ahead.append(await self._collect(update))
            for update in range(start, config.updates):
                line = await self._update(update)
                self.metrics.add(line)
                self.sampler.learned(line)
                self.progress["seconds_train"] = self.progress.get("seconds_train", 0.0) + line["seconds"]
                self.progress["sampler"] = self.sampler.state()
                done, saved_version = update + 1, self.learner.version  # from here on the update is whole
                self.progress["ahead"] = [list(_by_group(batch)) for batch in self._ahead]
                since.append(line["success"])
                if self.on_update is not None:
                    self.on_update(line)
                fault = self._fault(line, watch)
                if fault or done % config.checkpoint_every == 0 or done == config.updates:
                    self.checkpoints.save(self.learner, done, self.progress, score=float(np.mean(since)))
                    since.clear()
                if fault:
                    raise AuditError(fault)
                if self._cut is not None:
                    raise self._cut
                if self.learner.ranks.size > 1 and self.learner.ranks.stopped():
                    self.checkpoints.save(self.learner, done, self.progress, score=float(np.mean(since or [0.0])))
                    raise KeyboardInterrupt
        finally:
            # Not in the middle of an update: those are played again. Nor where ranks may have been cut at two places.
            if since and self.learner.version == saved_version and self.learner.ranks.size == 1:
                self.checkpoints.save(self.learner, done, self.progress, score=float(np.mean(since)))

    async def _update(self, update: int) -> dict[str, Any]:
        """One batch trained and, with staleness, another sampled meanwhile -> the update's line."""
        config, began = self.config, perf_counter()
        busy, version = self.policy.engine.busy_s, self.learner.version
        later = update + config.staleness
        if not config.staleness:
            self._ahead.append(await self._collect(update))
        sampled = perf_counter()
        waited = max(0.0, sampled - began - (self.policy.engine.busy_s - busy))  # for environments and bookkeeping
        episodes = self._ahead.popleft()
        if config.staleness and later < config.updates:
            figures = await self._learn_meanwhile(update, episodes, later)
        else:
            figures = self._learn(update, episodes)
        await self._push()
        now = perf_counter()
        generated = self.policy.engine.busy_s - busy if config.staleness else sampled - began
        seconds = {"seconds_generate": generated, "seconds_learn": now - sampled, "seconds": now - began}
        selected: Selected = figures.pop("selected")
        line = {"update": update, **seconds, "seconds_env": waited}
        trained = None if figures["steps_skipped"] else int(figures["tokens_trained"])
        return line | audit(episodes, selected, version=version, trained=trained, reach=self.objective.reach) | figures

    async def _learn_meanwhile(self, update: int, episodes: list[Episode], later: int) -> dict[str, Any]:
        """Learn in a thread while batch `later` is sampled. What cuts the sampling (Ctrl-C, a broken environment) is
        kept until this update is whole: a thread that changes weights is never left behind."""
        before = self.sampler.state()
        thread = asyncio.ensure_future(asyncio.to_thread(self._learn, update, episodes))
        try:
            self._ahead.append(await self._collect(later))
        except BaseException as error:
            self._cut = error
            self.sampler.load(before)
        await asyncio.wait([thread])
        return thread.result()

    async def _push(self) -> None:
        """The engine samples from the weights as they are now."""
        self.learner.publish(self.engine_lm)
        await self.policy.engine.push(self.learner.version)

    # -- sampling ------------------------------------------------------------------------------------------------------

    async def _collect(self, update: int) -> list[Episode]:
        """A batch of episodes, in the order of its groups. Groups whose rewards are all alike are replaced by the next
        tasks, in as many rounds as may be."""
        config = self.config
        slots = self.sampler.slots(update, config.groups, config.group_size)
        episodes, seen = await self._play(slots, update), {slot.task_id for slot in slots}
        for round_ in range(1, self.selection.resample + 1):
            groups = _by_group(episodes)
            dull = [group for group, members in groups.items() if not has_signal(taught(members, config.reward))]
            if not dull:
                break
            slots = self.sampler.slots(
                update, len(dull), config.group_size, first_group=round_ * config.groups, taken=seen
            )
            seen |= {slot.task_id for slot in slots}
            found = _by_group(await self._play(slots, update))
            better = iter([members for members in found.values() if has_signal(taught(members, config.reward))])
            episodes = [e for g, members in groups.items() for e in (next(better, members) if g in dull else members)]
        return episodes

    async def _play(self, slots: list[Slot], update: int) -> list[Episode]:
        """This rank's share of the groups, then those of all, in order. The leader stores them."""
        ranks, store = self.learner.ranks, self.driver.store
        mine = [slot for slot in slots if slot.group % ranks.size == ranks.rank]
        found = ranks.gather(await self.driver.collect(mine, update=update))
        for episode in [e for rank, batch in enumerate(found) if rank != ranks.rank for e in batch]:
            if store is not None:
                store.add(episode, asdict(self.sampler.split.find(episode.task_id)))
        return sorted((e for batch in found for e in batch), key=lambda e: (e.group, e.attempt))

    def _restored(self, start: int) -> int:
        """Take in the batches that had been sampled ahead when the run was cut -> the first update still to be sampled.
        What is stored of an update that is not whole is played again."""
        store, ahead = self.driver.store, self.progress.get("ahead", [])
        if store is None:
            return start
        for update, groups in enumerate(ahead, start):
            found = _by_group(list(store.episodes(run=self.driver.run, update=update)))
            self._ahead.append([e for g in groups for e in sorted(found[g], key=lambda e: e.attempt)])
        return start + len(ahead)

    # -- learning ------------------------------------------------------------------------------------------------------

    def _learn(self, update: int, episodes: list[Episode]) -> dict[str, Any]:
        """The optimiser steps of one update, each on consecutive groups -> their figures together. Mismatch is the
        first step's: later ones compare with weights that have moved."""
        _refuse_broken(episodes)
        probed: dict[str, float] = {}
        if self.config.probe_every and update % self.config.probe_every == 0:
            probed = input_retrieval(self.learner, episodes, temperature=self.policy.sampling.temperature)
        selected = self._credited(episodes)
        order = list(dict.fromkeys(e.group for e in episodes))
        share = -(-len(order) // self.config.minibatches)
        found: list[dict[str, float]] = []
        skipped = 0
        for first in range(0, len(order), share):
            members = set(order[first : first + share])
            pairs = zip(selected.trajectories, episodes, strict=True)
            part = [t for t, e in pairs if t is not None and e.group in members]
            try:
                found.append(self.learner.step(part, self.objective, temperature=self.policy.sampling.temperature))
            except NotFiniteError as error:
                self._keep_batch(update, part, error)
                skipped += 1
        return _together(found) | probed | {"selected": selected, "steps_skipped": skipped}

    def _credited(self, episodes: list[Episode]) -> Selected:
        config, objective = self.config, self.objective
        temperature = self.policy.sampling.temperature
        anchor: list[FloatArray | None] = [None] * len(episodes)
        if objective.needs_reference:
            anchor = self._scored(episodes, temperature, reference=True)
        less = [_divergence(e, a, objective.kl_coef) for e, a in zip(episodes, anchor, strict=True)]
        selected = select(
            taught(episodes, config.reward), config.credit, self.selection, discount=config.discount,
            divergence=less if objective.kl != "none" and objective.kl_in == "reward" else None,
        )  # fmt: skip
        proximal: list[FloatArray | None] = [None] * len(episodes)
        if objective.needs_proximal:
            proximal = self._scored(episodes, temperature)
        made = zip(selected.trajectories, anchor, proximal, strict=True)
        with_scores = [None if t is None else replace(t, reference=r, proximal=p) for t, r, p in made]
        return replace(selected, trajectories=with_scores)

    def _scored(
        self, episodes: list[Episode], temperature: float, *, reference: bool = False
    ) -> list[FloatArray | None]:
        """Log-probs of each episode's sampled tokens; None for an episode without any."""
        known = [i for i, e in enumerate(episodes) if e.counts and e.ledger is not None and e.ledger.num_sampled]
        ledgers = [ledger for i in known if (ledger := episodes[i].ledger) is not None]
        trajectories = [Trajectory(ledger, np.zeros(ledger.num_turns, np.float32)) for ledger in ledgers]
        found: list[FloatArray | None] = [None] * len(episodes)
        scores = self.learner.score(trajectories, temperature=temperature, reference=reference)
        for i, values in zip(known, scores, strict=True):
            found[i] = values
        return found

    # -- what stops it -------------------------------------------------------------------------------------------------

    def _keep_batch(self, update: int, part: Sequence[Trajectory], error: NotFiniteError) -> None:
        """Write the batch whose loss or gradient is no number; the step is skipped, and once in a run that is all."""
        times = self.progress["not_finite"] = self.progress.get("not_finite", 0) + 1
        path = self.metrics.path.with_name(f"not-finite-{update:06}-{times}.pt")
        names = ("ids", "sampled", "logprobs", "turns")
        rows = [
            {name: torch.from_numpy(np.array(getattr(row, name))) for name in names}
            | {"advantages": torch.from_numpy(t.advantages.copy())}
            for t in part
            for row in t.ledger.rows()
        ]
        if self.learner.ranks.leads:
            torch.save(rows, path)
        self.progress["not_finite_batch"] = f"{error} The batch is in {path}."

    def _fault(self, line: dict[str, Any], watch: Alarms) -> str:
        """Why this update's figures forbid another; nothing where they do not."""
        if line["steps_skipped"] and self.progress["not_finite"] > 1:
            return (
                f"update {line['update']}: {self.progress['not_finite_batch']} That is not the first time, so the run "
                "stops, with its state saved; start anew with a lower --lr or a tighter --clip-norm"
            )
        if not self.config.staleness and (apart := mismatch(line, self.config.max_mismatch)):
            return apart
        alarm = watch.seen(line)
        if not alarm or line["update"] + 1 == self.config.updates:  # nothing is left to train
            return ""
        return f"alarm at update {line['update']}: {alarm}. The state is saved."


def _refuse_broken(episodes: Sequence[Episode]) -> None:
    broken = [e for e in episodes if not e.counts]
    if len(broken) > (1 - MIN_COVERAGE) * len(episodes):
        failure = broken[0].failure
        raise AuditError(
            f"{len(broken)} of {len(episodes)} episodes failed, the first with {failure}; mend that and --resume"
        )


def _by_group(episodes: Sequence[Episode]) -> dict[int, list[Episode]]:
    groups: dict[int, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, []).append(episode)
    return groups


def _divergence(episode: Episode, anchor: FloatArray | None, coef: float) -> FloatArray | None:
    """What KL in the reward takes off each turn: coef times the sum of k1 = log p - log p_reference over its tokens."""
    if anchor is None or episode.ledger is None:
        return None
    rows = episode.ledger.rows()
    turns = np.concatenate([row.turns[row.sampled] for row in rows])
    k1 = np.concatenate([row.logprobs[row.sampled] for row in rows]) - anchor
    return (coef * np.bincount(turns, weights=k1, minlength=episode.ledger.num_turns)).astype(np.float32)


def _together(found: list[dict[str, float]]) -> dict[str, Any]:
    """One update's figures from its steps': means over the tokens trained, but for the largest gradient."""
    if not found:
        return {"tokens_trained": 0.0, "grad_norm": 0.0, "mismatch_mean": 0.0, "mismatch_p99": 0.0, "mismatch_max": 0.0}
    total = sum(f["tokens_trained"] for f in found)
    names = {name for f in found for name in f} - {"tokens_trained"}
    figures = {n: sum(f.get(n, 0.0) * f["tokens_trained"] for f in found) / max(1.0, total) for n in sorted(names)}
    figures["grad_norm"] = max(f["grad_norm"] for f in found)
    figures |= {name: found[0][name] for name in ("mismatch_mean", "mismatch_p99", "mismatch_max")}
    return figures | {"mismatch_k3": found[0].get("kl_k3", 0.0), "tokens_trained": total}
