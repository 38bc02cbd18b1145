"""The rules about what goes wrong: hostile output, episodes without end, threads, and what is left behind."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import gymnasium

from agentgym.conformance.base import (
    FULL,
    MAX_TURNS,
    Broken,
    Subject,
    gold_tasks,
    play,
    rule,
)
from agentgym.conformance.hostile import HOSTILE, Hostile
from agentgym.ledger import StopReason
from agentgym.loop import THREAD_NAME, run_sync
from agentgym.messages import assistant, raw_call
from agentgym.policies.builtin import Gold, Random, Scripted
from agentgym.spaces import Action
from agentgym.syntax import SYNTAXES
from agentgym.wrappers import async_face

# -- Hostile output ----------------------------------------------------------------------------------------------------


@rule("hostile output", "let tools validate by their types and raise ToolError; leave the rest to AgentEnv")
def _survives_hostile_output(subject: Subject) -> str:
    with subject.open() as env:
        for case in HOSTILE:
            observation, _ = env.reset(seed=31)
            names = [tool["function"]["name"] for tool in observation["tools"] or []]
            action = case.aimed_at(names[0] if names else "no_such_tool")
            _judge_hostile(case, action, env)
            if isinstance(action, str):
                for syntax in SYNTAXES.values():
                    env.reset(seed=31)
                    _fair(case, env.step(syntax.parse(action)))
    return f"{len(HOSTILE)} cases"


def _judge_hostile(case: Hostile, action: Action, env: gymnasium.Env) -> None:
    stepped = env.step(action)
    _fair(case, stepped)
    observation, _, terminated, truncated, info = stepped
    replies = [message for message in observation["messages"] if message["role"] == "tool"]
    if len(replies) != case.num_calls:
        raise Broken(f"{case.name}: {case.num_calls} calls got {len(replies)} replies")
    if any(not reply["content"].startswith("Error:") for reply in replies):
        raise Broken(f"{case.name}: a wrong call was answered by {replies[0]['content'][:200]!r}")
    if len({reply.get("tool_call_id") for reply in replies}) != len(replies):
        raise Broken(f"{case.name}: replies share an id")
    if case.num_calls and terminated:
        raise Broken(f"{case.name}: a wrong call ended the episode")
    if case.stop_reason is not None and (not truncated or info.get("stop_reason") != case.stop_reason):
        raise Broken(f"{case.name}: ended as {info.get('stop_reason')} where {case.stop_reason} is due")


def _fair(case: Hostile, stepped: tuple[Any, ...]) -> None:
    observation, reward, terminated, truncated, info = stepped
    if reward >= FULL:
        raise Broken(f"{case.name}: full reward")
    if (terminated or truncated) != ("stop_reason" in info):
        raise Broken(f"{case.name}: an end without a stop reason, or the reverse")
    json.dumps(observation).encode()


@rule("a limit", "set max_turns, so that an agent that never answers is stopped")
def _stops_the_endless(subject: Subject) -> str:
    with subject.open() as env:
        played = play(env, Scripted([assistant("", raw_call("no_such_tool", "{}"))] * MAX_TURNS), seed=41)
    if not played.ended or played.infos[-1]["stop_reason"] == StopReason.ANSWERED:
        raise Broken(f"an agent that only calls tools still runs after {MAX_TURNS} turns")
    return f"stopped after {len(played.actions)} turns: {played.infos[-1]['stop_reason']}"


# -- Threads, coroutines, leftovers ------------------------------------------------------------------------------------


@rule("any thread, any loop", "use no signals in verifiers, and nothing bound to the main thread")
def _grades_anywhere(subject: Subject) -> str:
    with subject.open() as env:
        tasks = gold_tasks(env, 1)
        if not tasks:
            return "does not apply: the environment gives no gold"
        rewards = {"the caller's thread": play(env, Gold(), seed=0, task=tasks[0]).reward}
        found: list[float | BaseException] = []

        def elsewhere() -> None:
            try:
                found.append(play(env, Gold(), seed=0, task=tasks[0]).reward)
            except BaseException as error:
                found.append(error)

        worker = threading.Thread(target=elsewhere)
        worker.start()
        worker.join()
        if isinstance(found[0], BaseException):
            raise Broken(f"in a worker thread: {type(found[0]).__name__}: {found[0]}") from found[0]
        rewards["a worker thread"] = found[0]
        rewards["a coroutine"] = run_sync(_played_async(env, tasks[0]))
    for place, reward in rewards.items():
        if reward < FULL:
            raise Broken(f"gold gets {reward} in {place}")
    return ", ".join(rewards)


async def _played_async(env: gymnasium.Env, task: int) -> float:
    face = async_face(env)
    if face is None:
        raise Broken(f"{env} has no async face; wrap with agentgym.wrappers.Wrapper")
    observation, _ = await face.areset(seed=0, options={"task": task})
    actor = Gold().begin(env, seed=0)
    for _ in range(MAX_TURNS):
        observation, reward, terminated, truncated, _ = await face.astep(await actor.act(observation))
        if terminated or truncated:
            return float(reward)
    raise Broken(f"gold still plays after {MAX_TURNS} turns")


@rule("nothing left behind", "free in teardown() what setup() opened: threads, processes, files")
def _leaves_nothing(subject: Subject) -> str:
    def cycle() -> None:
        with subject.open() as env:
            play(env, Random(), seed=51)
        env.close()  # twice: closing is idempotent

    cycle()  # the first use may load what is kept for good
    before = _holdings()
    for _ in range(10):
        cycle()
    after = _holdings()
    for name, count in before.items():
        if after[name] > count:
            raise Broken(f"10 episodes and closes left {after[name] - count} more {name}")
    return "threads, processes and files flat over 10 cycles"


def _holdings() -> dict[str, int]:
    """What this process holds, as far as the system tells (Linux: all three)."""
    held = {"threads": sum(thread.name != THREAD_NAME for thread in threading.enumerate())}
    if os.path.isdir("/proc/self/fd"):
        held["open files"] = len(os.listdir("/proc/self/fd"))
        held["processes"] = sum(
            len(_read(f"/proc/self/task/{thread}/children").split()) for thread in os.listdir("/proc/self/task")
        )
    return held


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # the thread has just ended
        return ""
