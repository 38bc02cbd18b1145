"""Which environments there are: Gymnasium's own registry, and the plug-ins that fill it.

Owns registration by name, the entry-point group `agentgym.envs`, and errors that name the nearest id. Gymnasium ≥ 1.0
loads no plug-ins itself. An environment's module is imported when it is made, not before."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import UnregisteredEnv

from agentgym.errors import ConfigError, nearest

GROUP = "agentgym.envs"
_namespaces: set[str] = set()


def register(id: str, entry_point: str, **kwargs: Any) -> None:
    """Name an environment: `register("acme/Door-v0", "acme_envs.door:DoorEnv")`; `kwargs` go to its constructor.

    Raises ConfigError for an entry point that is no string: specs travel as JSON, and nothing is imported early."""
    if not isinstance(entry_point, str) or ":" not in entry_point:
        raise ConfigError(f"{id}: entry_point is {entry_point!r:.80}; give 'package.module:Class' as a string")
    namespace, slash, _ = id.partition("/")
    if not slash:
        raise ConfigError(f"id {id!r} has no namespace; write 'yourname/{id}'")
    _namespaces.add(namespace)
    gymnasium.register(id=id, entry_point=entry_point, kwargs=kwargs)


def load_plugins() -> None:
    """Import every module of the entry-point group; one that fails is one warning, naming its distribution."""
    for point in entry_points(group=GROUP):
        _namespaces.add(point.name)
        try:
            point.load()
        except Exception as error:
            warnings.warn(f"{_origin(point)} offers environments but does not load: {error!r}", stacklevel=2)


def _origin(point: EntryPoint) -> str:
    if point.dist is None:
        return f"entry point {point.name!r} ({point.value})"
    return f"package {point.dist.name} {point.dist.version} ({point.name} = {point.value})"


def list_envs() -> list[EnvSpec]:
    """The specs of every agent environment, by id: those of plug-ins and those that `register` was given."""
    return [spec for name, spec in sorted(gymnasium.registry.items()) if name.partition("/")[0] in _namespaces]


def make(id: str, **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make`, whose unknown ids are a ConfigError with the nearest known one.

    "module:namespace/Name-v0" imports the module first."""
    try:
        return gymnasium.make(id, **kwargs)
    except (UnregisteredEnv, ModuleNotFoundError) as error:
        known = [spec.id for spec in list_envs()]
        name = id.rpartition(":")[2]
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise  # the environment's own missing package; Gymnasium names none where it is the id's module
        raise ConfigError(
            f"no environment {id!r}{nearest(name, known)} `agentgym list` shows all {len(known)}"
        ) from error
