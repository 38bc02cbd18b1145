"""Which backend: by name, or the best that works here.

Owns the choice and its reasons. Backends come from the entry-point group `agentgym.sandboxes`, one class per name."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from agentgym.errors import ConfigError, nearest
from agentgym.sandbox.contract import Backend, Box, EngineUnreachable, Listed, Spec

GROUP = "agentgym.sandboxes"
AUTOMATIC = ("docker", "bubblewrap")  # in this order; never one without isolation
_log = logging.getLogger(__name__)


def known() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def backend(name: str = "auto", **settings: Any) -> Backend:
    """The backend of that name, made with `settings`; one per process for the same settings.

    "auto" is AGENTGYM_SANDBOX where that is set, else docker, else bubblewrap: found out at its first use. Raises
    ConfigError for an unknown name and for settings that the backend refuses."""
    if name == "auto":
        name = os.environ.get("AGENTGYM_SANDBOX", "auto")
    return _made(name, tuple(sorted(settings.items())))


@functools.cache
def _made(name: str, settings: tuple[tuple[str, Any], ...]) -> Backend:
    if name == "auto":
        return Automatic(dict(settings))
    points = known()
    if name not in points:
        raise ConfigError(f"no sandbox backend {name!r}{nearest(name, points)} There are auto, {', '.join(points)}")
    return points[name].load()(**dict(settings))


class Automatic:
    """Docker where an engine answers, else bubblewrap; what they do not protect from, they say themselves."""

    name = "auto"

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._chosen: Backend | None = None
        self._choosing = asyncio.Lock()
        self.causes: dict[str, str] = {}  # why those before the chosen one do not work

    def __deepcopy__(self, memo: dict[int, Any]) -> Automatic:
        return self  # what is copied of an environment is its sandbox

    async def chosen(self) -> Backend:
        """Raises EngineUnreachable, naming every cause, where none works."""
        async with self._choosing:
            for name in AUTOMATIC if self._chosen is None else ():
                try:
                    made = backend(name, **self._settings)
                    await made.probe()
                except (ConfigError, EngineUnreachable) as error:
                    self.causes[name] = str(error)
                    _log.warning("sandboxes: not %s: %s", name, error)
                else:
                    self._chosen = made
                    break
        if self._chosen is None:
            raise EngineUnreachable("no sandbox can be had. " + " ".join(f"{n}: {c}" for n, c in self.causes.items()))
        return self._chosen

    async def probe(self) -> str:
        return await (await self.chosen()).probe()

    async def start(self, spec: Spec) -> Box:
        return await (await self.chosen()).start(spec)

    def listed(self) -> Sequence[Listed]:
        return self._chosen.listed() if self._chosen is not None else ()

    def reap(self) -> Sequence[str]:
        return self._chosen.reap() if self._chosen is not None else ()
