"""Which environments there are: Gymnasium's own registry, and the plug-ins that fill it.

Owns registration by name, the entry-point group `agentgym.envs`, and errors that name the nearest id. Gymnasium ≥ 1.0
loads no plug-ins itself. An environment's module is imported when it is made, not before."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
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
    """`gymnasium.make`, whose unknown ids and settings are a ConfigError with the nearest known one.

    "module:namespace/Name-v0" imports the module first."""
    try:
        return gymnasium.make(id, **kwargs)
    except TypeError as error:
        if not kwargs:
            raise
        raise _misfit(id.rpartition(":")[2], kwargs, error) from error
    except (UnregisteredEnv, ModuleNotFoundError) as error:
        known = [spec.id for spec in list_envs()]
        name = id.rpartition(":")[2]
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise  # the environment's own missing package; Gymnasium names none where it is the id's module
        raise ConfigError(
            f"no environment {id!r}{nearest(name, known)} `agentgym list` shows all {len(known)}"
        ) from error


def _misfit(name: str, given: Mapping[str, Any], error: TypeError) -> ConfigError:
    """Which of the settings that were given an environment does not have, or else what its constructor says."""
    entry_point: Any = gymnasium.spec(name).entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    settings = inspect.signature(creator).parameters
    known = {*settings, *inspect.signature(gymnasium.make).parameters}
    if not any(each.kind is each.VAR_KEYWORD for each in settings.values()):
        for setting in given.keys() - known:
            close = nearest(setting, settings)
            return ConfigError(f"{name} has no setting {setting!r}{close} It has {', '.join(settings)}")
    values = ", ".join(f"{setting}={value!r}" for setting, value in given.items())
    reason = str(error).partition(" was raised from")[0]
    return ConfigError(f"{name} cannot be made with {values}: {reason}")
