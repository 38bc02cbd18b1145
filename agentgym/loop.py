"""The one event loop of the process, in one thread: where the sync faces of async things run.

Owns the thread and the way in. Nobody else starts a loop, so that clients and sandboxes bound to it outlive a call."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from agentgym.errors import ConfigError

THREAD_NAME = "agentgym-loop"
T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The process-wide loop, started at first use."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=THREAD_NAME, daemon=True).start()
        return _loop


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine from plain code, also where the caller's thread runs a loop of its own (a notebook).

    An interrupt of the caller cancels the coroutine. Raises ConfigError inside the loop's own thread, where waiting
    would wait for itself."""
    if threading.current_thread().name == THREAD_NAME:
        coroutine.close()
        raise ConfigError(
            "a sync face was called on agentgym's own event loop and would wait for itself; await the async one"
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, event_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _forget() -> None:
    """A forked child has the loop object but not its thread: it starts its own."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
