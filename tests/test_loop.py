"""The one event loop: reachable from everywhere but itself, and interrupted with its caller."""

import asyncio
import os
import signal
import threading

import pytest

from agentgym import ConfigError
from agentgym.loop import THREAD_NAME, event_loop, run_sync


async def where():
    return threading.current_thread().name, asyncio.get_running_loop()


def test_every_call_runs_on_one_loop_in_one_thread():
    assert run_sync(where()) == run_sync(where()) == (THREAD_NAME, event_loop())


def test_it_can_be_called_from_inside_another_running_loop():
    async def notebook():
        return run_sync(where())[0]

    runner = asyncio.new_event_loop()
    try:
        assert runner.run_until_complete(notebook()) == THREAD_NAME
    finally:
        runner.close()


def test_waiting_for_itself_is_refused():
    async def inner():
        run_sync(where())

    with pytest.raises(ConfigError, match="would wait for itself"):
        run_sync(inner())


def test_an_interrupt_cancels_the_coroutine():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    cancelled = threading.Event()

    async def endless():
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(KeyboardInterrupt):
        run_sync(endless())
    signal.signal(signal.SIGINT, before)
    assert cancelled.wait(5)


def test_a_forked_child_starts_its_own_loop():
    run_sync(where())
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run_sync(where())[0] == THREAD_NAME else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
