"""The one event loop of the process, in one thread: where the sync faces of async things run.

Owns the thread and the way in. Nobody else starts a loop, so that clients and sandboxes bound to it outlive a call."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from agentgym.errors import ConfigError

THREAD_NAME = "agentgym-loop"
CANCEL_S = 60.0  # what a cancelled coroutine gets to clean up
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
    loop, done, ended = event_loop(), Future(), threading.Event()
    tasks: list[asyncio.Task[T]] = []

    def start() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(settle)

    def settle(task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            error = task.exception()
            done.set_exception(error) if error is not None else done.set_result(task.result())
        else:
            done.cancel()
        ended.set()

    loop.call_soon_threadsafe(start)
    try:
        return done.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(lambda: tasks[0].cancel())
        ended.wait(CANCEL_S)  # it may be saving something
        raise


async def at_home(work: Awaitable[T]) -> T:
    """Await something on agentgym's own loop, to which it may be bound, whatever loop the caller runs."""

    async def run() -> T:
        return await work

    if asyncio.get_running_loop() is event_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), event_loop()))


def _forget() -> None:
    """A forked child has the loop object but not its thread: it starts its own."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
