"""Functions that somebody else wrote, by name: `module:function`.

Owns the import, the call and their errors. What a function must be like, its user says."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, cast

from agentgym.errors import AgentGymError, ConfigError


def function_at(name: str) -> Callable[..., Any]:
    """What `module:function` names, the working directory's modules among them. Raises ConfigError saying what is
    missing."""
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{name!r}: {error}. Give a function of a module that Python can import.") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"{name!r} is {type(found).__name__} and no function")
    return found


async def called(function: Callable[..., Any], blame: type[AgentGymError], /, *args: Any, **kwargs: Any) -> Any:
    """What a plain or async function gives. A plain one has a thread of its own, which holds up neither others nor the
    end of the process. What it raises is raised; what would end more than its own work (SystemExit, KeyboardInterrupt,
    CancelledError) is raised as `blame`."""
    try:
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        said = await _in_thread(lambda: function(*args, **kwargs))
        return await said if inspect.isawaitable(said) else said
    except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as stop:
        if isinstance(stop, asyncio.CancelledError) and cast(Any, asyncio.current_task()).cancelling():
            raise  # it is we who stop
        raise blame(f"{getattr(function, '__name__', function)}() raised {type(stop).__name__}") from None


async def _in_thread(work: Callable[[], Any]) -> Any:
    """As asyncio.to_thread, but nobody waits for the thread when the process ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(said: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result((said, error))

    def run() -> None:
        said, raised = None, None
        try:
            said = work()
        except BaseException as error:
            raised = error
        with suppress(RuntimeError):  # the loop is gone, and with it whoever asked
            loop.call_soon_threadsafe(settle, said, raised)

    Thread(target=run, name="agentgym-function", daemon=True).start()
    said, error = await done
    if error is not None:
        raise error
    return said
