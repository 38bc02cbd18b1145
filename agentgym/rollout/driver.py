"""Drives policies through environments: many episodes at once, one coroutine each, on one event loop.

Owns the episode's course (reset, act, step, end), retries of what was not the model's fault, and the writing of each
finished episode. Which slots to fill, and what to do with the episodes, is the caller's business."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium

from agentgym.env import AgentEnv, Observation
from agentgym.errors import ConfigError, Failure, FailureKind, LedgerError, TaskError
from agentgym.ledger import Episode, StopReason, Turn
from agentgym.messages import JSON, Message
from agentgym.policies.base import Actor, Policy
from agentgym.registry import make
from agentgym.rollout.store import Store
from agentgym.wrappers import async_face

PASS_S = 0.005  # of the loop, for turns; those that wait for an engine, a server or a thread take none of it


@dataclass(frozen=True, slots=True)
class Slot:
    """One episode to be played. Slots of one group share task and seed: the same episode, other tokens."""

    task_id: str
    attempt: int
    group: int
    seed: int  # of the environment; the policy's stream is derived from it, the update and the attempt


def derive_seed(*parts: JSON) -> int:
    """A 63-bit seed from names and numbers, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


class Driver:
    """Plays slots in up to `concurrency` environments, which live until `close`.

    Which episodes run side by side is a function of the slots, never of arrival: worker w plays slots w, w + n, …;
    unless `steady` is False: then whoever is free takes the next, which a policy that computes nothing here may.
    An infrastructure failure is played again, in a fresh environment, up to `retries` times; then it is recorded."""

    def __init__(
        self,
        env_id: str,
        policy: Policy,
        *,
        run: str,
        env_kwargs: Mapping[str, Any] | None = None,
        store: Store | None = None,
        concurrency: int = 256,
        retries: int = 2,
        steady: bool = True,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; at least one episode must run")
        self.env_id = env_id
        self.policy = policy
        self.run = run
        self.env_kwargs = dict(env_kwargs or {})
        self.store = store
        self.concurrency = concurrency
        self.retries = retries
        self.steady = steady
        self._seats: list[_Seat] = []

    async def collect(
        self,
        slots: Sequence[Slot],
        *,
        update: int = 0,
        on_episode: Callable[[Episode], None] | None = None,
        admits: Callable[[], bool] = lambda: True,
    ) -> list[Episode]:
        """Play every slot; the episodes in the order of the slots. Each is stored when it ends.

        `admits` is asked before each: where it says no, the worker that asked ends, and its slots are left out."""
        count = min(self.concurrency, len(slots))
        while len(self._seats) < count:
            await _turnstile().passed()
            self._seats.append(_Seat(self._make))
        done: dict[int, Episode] = {}

        def finish(index: int, episode: Episode, task: Mapping[str, JSON] | None) -> None:
            if self.store is not None:
                self.store.add(episode, task)
            done[index] = episode
            if on_episode is not None:
                on_episode(episode)

        # Every actor of the first wave is open before any asks: an engine in step waits for all of them.
        queue = iter(range(count, len(slots)))
        shares = [iter(range(w + count, len(slots), count)) if self.steady else queue for w in range(count)]
        workers = [
            _Worker(self, seat, update, chain([w], shares[w]), slots[w]) for w, seat in enumerate(self._seats[:count])
        ]
        tasks = [asyncio.ensure_future(worker.work(slots, admits, finish)) for worker in workers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [done[index] for index in sorted(done)]

    def close(self) -> None:
        """Close the environments and their threads. May be called twice."""
        seats, self._seats = self._seats, []
        for seat in seats:
            seat.close()

    def _make(self) -> gymnasium.Env:
        return make(self.env_id, **self.env_kwargs)


class _Turnstile:
    """Lets as many turns through per pass of the loop as take a few milliseconds: a policy and a world that never wait
    would hold up everybody's timers and sockets, a thousand of them for a thousand turns."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._batch = 1
        self._opened = 0.0

    async def passed(self) -> None:
        """Wait for one's turn."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._opened = perf_counter()
            loop.call_soon(self._open)
        self._waiting.append(loop.create_future())
        await self._waiting[-1]

    def _open(self) -> None:
        now = perf_counter()
        if now - self._opened > PASS_S:
            self._batch = max(1, self._batch // 2)
        elif len(self._waiting) > self._batch:  # only a batch that was full says that more would do
            self._batch += 1
        self._opened = now
        for _ in range(min(len(self._waiting), self._batch)):
            turn = self._waiting.popleft()
            if not turn.done():  # it may be cancelled
                turn.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._open)


_TURNSTILES: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turnstile] = WeakKeyDictionary()


def _turnstile() -> _Turnstile:
    """The one of this loop, which all drivers share."""
    loop = asyncio.get_running_loop()
    if loop not in _TURNSTILES:
        _TURNSTILES[loop] = _Turnstile()
    return _TURNSTILES[loop]


class _Seat:
    """One environment and the way to call it: its async face, or its sync face in a thread of its own."""

    def __init__(self, build: Callable[[], gymnasium.Env]) -> None:
        self._build = build
        self.env = build()
        self.base = _base(self.env)
        self._face = async_face(self.env)
        self._thread: ThreadPoolExecutor | None = None
        if self._face is None or (self.base.blocking and self.base.is_plain):
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentgym-env")

    def reset(self, *, seed: int, options: dict[str, Any]) -> Awaitable[tuple[Observation, dict[str, Any]]]:
        if self._thread is None:
            return self._face.areset(seed=seed, options=options)  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, lambda: self.env.reset(seed=seed, options=options))

    def step(self, action: Message) -> Awaitable[Any]:
        if self._thread is None:
            return self._face.astep(action)  # type: ignore[union-attr]
        return asyncio.get_running_loop().run_in_executor(self._thread, self.env.step, action)

    async def renew(self) -> bool:
        """Throw the environment away and make another; False where that fails too."""
        try:
            await asyncio.to_thread(self.env.close)
            self.env = self._build()
        except Exception:  # the failure that led here stands, and is recorded
            return False
        self.base, self._face = _base(self.env), async_face(self.env)
        return True

    def close(self) -> None:
        self.env.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _base(env: gymnasium.Env) -> AgentEnv:
    base = env.unwrapped
    if not isinstance(base, AgentEnv):
        raise ConfigError(
            f"{env.spec.id if env.spec else env} is no agentgym.AgentEnv; a policy of messages cannot play it"
        )
    return base


def env_version(env: gymnasium.Env) -> str:
    """As an episode records it: "v0" of agentgym/Door-v0."""
    return f"v{env.spec.version}" if env.spec is not None else ""


class _Worker:
    """Plays its share of the slots, one after the other, in one seat."""

    def __init__(self, driver: Driver, seat: _Seat, update: int, share: Iterable[int], first: Slot) -> None:
        self.driver = driver
        self.seat = seat
        self.update = update
        self.share = share
        self.actor: Actor = self._begin(first)
        self._is_new = True  # the actor: it has played nothing yet

    def _begin(self, slot: Slot) -> Actor:
        seed = derive_seed(self.driver.run, self.update, slot.task_id, slot.attempt, slot.seed)
        return self.driver.policy.begin(self.seat.env, seed=seed)

    async def work(
        self,
        slots: Sequence[Slot],
        admits: Callable[[], bool],
        finish: Callable[[int, Episode, Mapping[str, JSON] | None], None],
    ) -> None:
        try:
            for index in self.share:
                slot = slots[index]
                if not admits():
                    break
                if not self._is_new:
                    await self._replace(slot)
                self._is_new = False
                episode = await self._play(slot)
                for _ in range(self.driver.retries):
                    if episode.failure is None or episode.failure.kind != FailureKind.INFRASTRUCTURE:
                        break
                    if not await self.seat.renew():
                        break
                    await self._replace(slot)
                    episode = await self._play(slot)
                task = asdict(self.seat.base.task) if episode.task_id and self.seat.base.has_episode else None
                finish(index, episode, task)
        finally:
            await self.actor.close()

    async def _replace(self, slot: Slot) -> None:
        """Open the next actor before the last one closes, so that the engine's count of them never dips."""
        last, self.actor = self.actor, self._begin(slot)
        await last.close()

    async def _play(self, slot: Slot) -> Episode:
        """One episode, to its end or its failure."""
        turns: list[Turn] = []
        offered: dict[str, Mapping[str, JSON]] = {}
        reward, terminated, info, failure = 0.0, False, {}, None
        stop = StopReason.FAILED
        base = self.seat.base
        try:
            await _turnstile().passed()
            observation, _ = await self.seat.reset(seed=slot.seed, options={"task": slot.task_id})
            base = self.seat.base
            truncated = False
            while not (terminated or truncated):
                for tool in observation["tools"] or ():
                    offered.setdefault(tool["function"]["name"], tool)
                await _turnstile().passed()
                start = perf_counter()
                action = await self.actor.act(observation)
                middle = perf_counter()
                observation, gained, terminated, truncated, info = await self.seat.step(action)
                if not math.isfinite(gained):
                    raise TaskError(f"a step gave the reward {gained!r}; a reward is a finite number")
                reward += gained
                turns.append(Turn(gained, base.state_key(), middle - start, perf_counter() - middle))
            stop = info["stop_reason"]
            if "unscored" in info:
                failure = Failure.of(TaskError(f"unscored: {info['unscored']}"))
        except (ConfigError, LedgerError):
            raise  # no retry mends a wrong setting or a wrong record: the run ends and says so
        except Exception as error:
            failure = Failure.of(error)
            reward, terminated, info = 0.0, False, {}
        played = base.has_episode
        return Episode(
            run=self.driver.run, update=self.update, task_id=slot.task_id, attempt=slot.attempt, seed=slot.seed,
            split=slot.task_id.partition(":")[0], group=slot.group, env_id=self.driver.env_id,
            env_version=env_version(self.seat.env),
            messages=base.messages if played else (), turns=tuple(turns), reward=reward,
            reward_parts=info.get("reward_parts", {}), terminated=terminated,
            truncated=stop.is_limit, stop_reason=stop, failure=failure, ledger=self.actor.ledger,
            final=info.get("final"), metadata=dict(base.task.metadata) if played else {},
            grants=dict(base.grants) if played else {}, tools=tuple(offered.values()),
        )  # fmt: skip
