"""Sandboxes that are started before they are wanted.

Owns how many wait, and their health. A sandbox serves one holder and is closed, never used again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from agentgym.errors import AgentGymError, ConfigError
from agentgym.loop import event_loop, run_sync
from agentgym.sandbox.contract import Backend, Box, Listed, Spec

REFILL_S = 0.002


class Pool:
    """A backend that keeps `warm` sandboxes of one spec ready: give it to `Sandbox` or to an environment in the
    backend's place. Specs other than its own are started cold. Close it when done: `with Pool(...) as pool`.

    The refill runs in the background; where it fails, the next `start` says why. Raises ConfigError for `warm` < 1."""

    def __init__(self, source: Backend, spec: Spec | None = None, *, warm: int = 4) -> None:
        if warm < 1:
            raise ConfigError(f"warm={warm}: a pool keeps at least one sandbox ready")
        self.source = source
        self.spec = spec or Spec()
        self.warm = warm
        self._ready: deque[Box] = deque()
        self._coming: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    async def probe(self) -> str:
        return await self.source.probe()

    def listed(self) -> Sequence[Listed]:
        return self.source.listed()

    def reap(self) -> Sequence[str]:
        return self.source.reap()

    async def start(self, spec: Spec) -> Box:
        """A warm sandbox that answers, or a cold one."""
        if self._closed:
            raise ConfigError("this pool is closed; make another")
        if spec != self.spec:
            return await self.source.start(spec)
        while self._ready:
            box = self._ready.popleft()
            try:
                await box.ping()
            except AgentGymError:  # it died while it waited
                await box.close()
            else:
                asyncio.get_running_loop().call_later(REFILL_S, self._refill)  # once its holder has it
                return box
        self._refill()
        return await self.source.start(spec)

    async def fill(self) -> None:
        """Wait until as many are ready as should be. Raises what their start raises."""
        while len(self._ready) < self.warm:
            self._refill()
            await asyncio.gather(*self._coming)

    def _refill(self) -> None:
        for _ in range(0 if self._closed else self.warm - len(self._ready) - len(self._coming)):
            task = asyncio.get_running_loop().create_task(self._add())
            self._coming.add(task)
            task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._coming.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever starts next meets it, or fill() raises it

    async def _add(self) -> None:
        box = await self.source.start(self.spec)
        if self._closed:
            await box.close()
        else:
            self._ready.append(box)

    async def aclose(self) -> None:
        """End those that wait; those that were handed out are their holders'. May be called twice."""
        self._closed = True
        coming = list(self._coming)
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        ready, self._ready = list(self._ready), deque()
        await asyncio.gather(*(box.close() for box in ready), return_exceptions=True)

    def close(self) -> None:
        run_sync(self.aclose())

    def __enter__(self) -> Pool:
        run_sync(self.fill())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._ready and not self._closed:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(_end(list(self._ready)), event_loop())


async def _end(boxes: list[Box]) -> None:
    await asyncio.gather(*(box.close() for box in boxes), return_exceptions=True)
