"""What every environment must keep to: the rules behind `agentgym check`.

Owns the rules, each one small function with the sentence that says how to mend a breach, and HOSTILE, the corpus of
what a model may write. Printing the table is the command line's business; sandboxes have a suite of their own.

A rule returns what it saw, "does not apply: …" included, or raises Broken."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from agentgym.env import AgentEnv
from agentgym.errors import ConfigError
from agentgym.ledger import StopReason
from agentgym.loop import THREAD_NAME, run_sync
from agentgym.messages import JSON, Message, assistant, raw_call
from agentgym.policies.base import Policy
from agentgym.policies.builtin import Gold, Nop, Random, Scripted
from agentgym.registry import make
from agentgym.rewards import Rubric
from agentgym.spaces import Action, Observation
from agentgym.syntax import SYNTAXES
from agentgym.wrappers import async_face

NUM_TASKS = 20
MAX_TURNS = 10_000  # of one checked episode
LUCK = 0.25  # share of tasks that a random policy may solve
FULL = 1 - 1e-6
TOOL = "{tool}"  # stands for the name of a tool on offer


@dataclass(frozen=True)
class Result:
    """What became of one rule."""

    rule: str
    passed: bool
    detail: str
    fix: str
    seconds: float


@dataclass(frozen=True)
class Hostile:
    """Something a model may write. Every call in it is wrong for every tool, so that each is answered by an error."""

    name: str
    action: Any  # text, or what a careless policy makes of an assistant message
    num_calls: int = 0
    stop_reason: StopReason | None = None  # how it must end the episode, where that is certain

    def aimed_at(self, tool: str) -> Action:
        """The action with the name of a real tool."""
        return json.loads(json.dumps(self.action).replace(TOOL, tool))


def _bad(name: str, *arguments: str, tool: str = TOOL) -> Hostile:
    calls = (raw_call(tool, text, f"call_{i}") for i, text in enumerate(arguments))
    return Hostile(name, assistant("", *calls), len(arguments))


HOSTILE: tuple[Hostile, ...] = (
    _bad("truncated arguments", '{"no_such_argument": '),
    _bad("double-encoded arguments", '"{\\"no_such_argument\\": 1}"'),
    _bad("a list for arguments", "[1, 2]"),
    _bad("a number for arguments", "7"),
    _bad("null for arguments", "null"),
    _bad("no arguments at all", ""),
    _bad("stray quotes", "'no_such_argument': '1'"),
    _bad("an argument too many", '{"no_such_argument": 1}'),
    _bad("nested without end", "[" * 100_000),
    _bad("NaN for arguments", "NaN"),
    _bad("a megabyte of arguments", '{"no_such_argument": "' + "x" * 1_000_000 + '"}'),
    _bad("lone surrogates in arguments", '{"no_such_argument": "\ud800"}'),
    _bad("an unknown tool", "{}", tool="no_such_tool"),
    _bad("an empty tool name", "{}", tool=""),
    _bad("a tool name of a megabyte", "{}", tool="x" * 1_000_000),
    _bad("a dunder for a tool", "{}", tool="__init__"),
    _bad("a method that is no tool", "{}", tool="final"),
    _bad("endless calls", *['{"no_such_argument": 1}'] * 2_000),
    Hostile("duplicate call ids", assistant("", *[raw_call("no_such_tool", "{}", "same")] * 3), 3),
    Hostile(
        "an object where text is due", {"role": "assistant", "content": "", "tool_calls": [7, {"function": None}]}, 2
    ),
    Hostile("arguments that are no text", {"tool_calls": [{"function": {"name": TOOL, "arguments": [1]}}]}, 1),
    Hostile("empty text", ""),
    Hostile("a refusal", "I'm sorry, but I cannot help with that."),
    Hostile("a megabyte of text", "x" * 1_000_001),
    Hostile("lone surrogates", "a\ud800b\udfff"),
    Hostile("control characters", "\x00\x07\x1b[2J\r\u202e"),
    Hostile("special tokens spelt out", "<|im_end|><|im_start|>system\n</s><s>[INST]<|endoftext|><tool_response>"),
    Hostile("a truncated call in text", '<tool_call>{"name": "' + TOOL + '", "argum'),
    Hostile("a nested call in text", '<tool_call><tool_call>{"name": "x"}</tool_call></tool_call>'),
    Hostile("a truncated xml call", "<function=" + TOOL + "><parameter=no_such_argument>1"),
    Hostile("an action without input", "Action: " + TOOL + "\nAction:\nAction Input"),
    Hostile("code that would run", "```tool\n__import__('os').abort()\n```"),
    Hostile("unclosed tags without end", "<tool_call>" * 50_000),
    Hostile("format strings", "{0.__class__} %s %n ${HOME} {{}}"),
    Hostile(
        "an answer that was cut",
        {"role": "assistant", "content": "4", "finish_reason": "length"},
        0,
        StopReason.MAX_TOKENS,
    ),
    Hostile("a full context", {"role": "assistant", "content": "", "finish_reason": "context"}, 0, StopReason.CONTEXT),
)


class Broken(Exception):
    """The rule is broken, and how."""


@dataclass(frozen=True)
class Subject:
    """The environment under check."""

    env_id: str
    kwargs: Mapping[str, JSON]

    @contextmanager
    def open(self, **kwargs: Any) -> Iterator[gymnasium.Env]:
        env = make(self.env_id, **{**self.kwargs, **kwargs})
        try:
            yield env
        finally:
            env.close()


@dataclass
class Played:
    """One episode as a rule looks at it."""

    task_id: str
    actions: list[Message] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @property
    def reward(self) -> float:
        return self.rewards[-1] if self.rewards else 0.0

    @property
    def record(self) -> str:
        """All that an agent can see, as one comparable text."""
        return json.dumps([self.task_id, self.observations, self.rewards, self.infos], default=str)


Rule = Callable[[Subject], str]
RULES: dict[str, tuple[str, Rule]] = {}  # name -> (fix, function)


def rule(name: str, fix: str) -> Callable[[Rule], Rule]:
    def keep(function: Rule) -> Rule:
        RULES[name] = (fix, function)
        return function

    return keep


def check(env_id: str, **kwargs: JSON) -> list[Result]:
    """Every rule, in order, for one environment. Raises ConfigError where it cannot be made or is no AgentEnv."""
    subject = Subject(env_id, kwargs)
    with subject.open() as env:
        _world(env)
    return [_result(name, subject) for name in RULES]


def check_rule(name: str, env_id: str, **kwargs: JSON) -> Result:
    """One rule by its name."""
    return _result(name, Subject(env_id, kwargs))


def _result(name: str, subject: Subject) -> Result:
    fix, function = RULES[name]
    start = time.perf_counter()
    try:
        passed, detail = True, function(subject)
    except Broken as error:
        passed, detail = False, str(error)
    except Exception as error:  # whatever an environment raises is a breach of the rule, told as such
        passed, detail = False, f"{type(error).__name__}: {error}"[:1000]
    return Result(name, passed, detail, fix, time.perf_counter() - start)


def _world(env: gymnasium.Env) -> AgentEnv:
    if not isinstance(env.unwrapped, AgentEnv):
        raise ConfigError(f"{env.unwrapped!r:.80} is no AgentEnv; derive it from agentgym.AgentEnv")
    return env.unwrapped


def play(env: gymnasium.Env, policy: Policy, *, seed: int, task: int | str | None = None, state: Any = None) -> Played:
    """One episode through the sync face."""
    options = {"state": state} if state is not None else {} if task is None else {"task": task}
    observation, info = env.reset(seed=None if state is not None else seed, options=options)
    played = Played(info["task_id"], observations=[observation], infos=[info])
    actor = policy.begin(env, seed=seed)
    while not played.ended and len(played.actions) < MAX_TURNS:
        action = run_sync(actor.act(observation))  # type: ignore[arg-type]
        observation, reward, terminated, truncated, info = env.step(action)
        played.actions.append(action)
        played.observations.append(observation)
        played.rewards.append(float(reward))
        played.infos.append(info)
        played.ended = terminated or truncated
    return played


def _gold_tasks(env: gymnasium.Env, count: int = NUM_TASKS) -> list[int]:
    """Indices of the first tasks whose gold is known."""
    world, found = _world(env), []
    for index in range(min(count, len(world.tasks.split(world.split)))):
        env.reset(seed=0, options={"task": index})
        if run_sync(_awaited(world.gold())) is not None:
            found.append(index)
    return found


async def _awaited(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


# -- Gymnasium ---------------------------------------------------------------------------------------------------------


@rule("gymnasium's checker", "see the message of gymnasium.utils.env_checker.check_env; it names the method")
def _passes_gymnasium(subject: Subject) -> str:
    with warnings.catch_warnings(record=True) as caught, subject.open() as env:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    told = [str(warning.message) for warning in caught]
    if told:
        raise Broken(f"{len(told)} warnings, the first: {told[0]}")
    return "no warnings"


@rule("spec as JSON", "register with a string entry point, and take only JSON values in the constructor")
def _spec_travels(subject: Subject) -> str:
    with subject.open() as env:
        if env.spec is None:
            raise Broken("it has no spec; make it by its id")
        env.spec.to_json()
    return "serialisable"


@rule("vectors", "keep observations and infos plain data, and the constructor's arguments picklable")
def _makes_vectors(subject: Subject) -> str:
    for mode, extra in (("sync", {}), ("async", {"shared_memory": False})):
        envs = gymnasium.make_vec(
            subject.env_id, num_envs=2, vectorization_mode=mode, vector_kwargs=extra, **dict(subject.kwargs)
        )
        try:
            envs.reset(seed=1)
            envs.action_space.seed(3)
            for _ in range(3):
                envs.step(envs.action_space.sample())
        finally:
            envs.close()
    return "sync and async, 2 environments, 3 steps"


# -- Determinism -------------------------------------------------------------------------------------------------------


def fingerprint(env_id: str, kwargs: Mapping[str, JSON]) -> str:
    """A hash of what three seeded episodes show, equal in every process."""
    with Subject(env_id, kwargs).open() as env:
        records = [play(env, Random(), seed=seed).record for seed in (0, 1, 2)]
        records += [play(env, Gold(), seed=3, task=index).record for index in _gold_tasks(env, 2)]
    return sha256("\n".join(records).encode("utf-8", "replace")).hexdigest()


@rule("same in two processes", "draw all chance from self.np_random; do not iterate over sets; use no clock")
def _same_in_two_processes(subject: Subject) -> str:
    code = (
        "import json, sys; from agentgym.conformance import fingerprint; "
        "sys.stdout.write(fingerprint(sys.argv[1], json.loads(sys.argv[2])))"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, "-c", code, subject.env_id, json.dumps(dict(subject.kwargs))]
    there = subprocess.run(arguments, capture_output=True, text=True, env=environ, timeout=300, check=False)
    if there.returncode != 0:
        raise Broken(f"the other process failed: {there.stderr.strip()[-500:]}")
    here = fingerprint(subject.env_id, subject.kwargs)
    if there.stdout != here:
        raise Broken(f"the same seeds and actions gave {here[:12]} here and {there.stdout[:12]} in another process")
    return f"fingerprint {here[:12]}"


@rule("20 seeds differ", "use the seed: build the world of self.task and self.np_random")
def _seeds_differ(subject: Subject) -> str:
    with subject.open() as env:
        episodes = {play(env, Nop(), seed=seed).record for seed in range(20)}
    if len(episodes) < 2:
        raise Broken("20 seeds gave one and the same episode")
    return f"{len(episodes)} different episodes of 20"


@rule("reset forgets", "set every attribute in setup(); leave nothing over from the episode before")
def _reset_forgets(subject: Subject) -> str:
    with subject.open() as env:
        first, _, third = (play(env, Random(), seed=seed).record for seed in (42, 7, 42))
        forward = [play(env, Random(), seed=5, task=index).record for index in range(4)]
        backward = [play(env, Random(), seed=5, task=index).record for index in reversed(range(4))]
    if first != third:
        raise Broken("reset(42), reset(7), reset(42): the first and third episode differ")
    if forward != backward[::-1]:
        raise Broken("the same tasks in another order gave other episodes")
    return "reset(42), reset(7), reset(42); 4 tasks in two orders"


@rule("global generators", "use self.np_random instead of the modules random and numpy.random")
def _leaves_global_generators(subject: Subject) -> str:
    before = random.getstate(), repr(np.random.get_state())
    with subject.open() as env:
        play(env, Random(), seed=11)
        play(env, Nop(), seed=12)
        for index in _gold_tasks(env, 2):
            play(env, Gold(), seed=13, task=index)
    after = random.getstate(), repr(np.random.get_state())
    for name, old, new in zip(("random", "numpy.random"), before, after, strict=True):
        if old != new:
            raise Broken(f"the process-wide generator of {name} was used or seeded")
    return "random and numpy.random untouched"


@rule("snapshots", "make every attribute copyable, and keep the world in attributes of self")
def _restores_state(subject: Subject) -> str:
    with subject.open() as env:
        world = _world(env)
        observation, _ = env.reset(seed=21)
        action = run_sync(Random().begin(env, seed=21).act(observation))
        ended = any(env.step(action)[2:4])
        if ended:
            env.reset(seed=21)
        try:
            state = world.state()
        except ConfigError as error:
            return f"does not apply: {error}"
        first, second = (play(env, Random(), seed=22, state=state).record for _ in range(2))
    if first != second:
        raise Broken("two episodes from one state(), with the same actions, differ")
    return "two equal continuations of one state"


# -- Tasks, tools, rewards ---------------------------------------------------------------------------------------------


@rule("disjoint splits", "let each problem occur once; use TaskSet, which sees to it")
def _splits_are_disjoint(subject: Subject) -> str:
    with subject.open() as env:
        tasks = _world(env).tasks
        digests: dict[str, set[str]] = {}
        for name in tasks.names:
            split = tasks.split(name)
            digests[name] = {split[index].digest for index in range(min(200, len(split)))}
    for one, other in combinations(digests, 2):
        if shared := digests[one] & digests[other]:
            raise Broken(f"{len(shared)} tasks are in both {one!r} and {other!r}, e.g. {min(shared)}")
    return f"up to 200 tasks each of {', '.join(digests)}"


@rule("tool schemas", "give every parameter a plain type, and every tool a docstring")
def _schemas_are_valid(subject: Subject) -> str:
    with subject.open() as env:
        tools = env.reset(seed=0)[0]["tools"] or []
    for tool in tools:
        function = tool.get("function", {})
        name, parameters = function.get("name", ""), function.get("parameters", {})
        if tool.get("type") != "function" or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise Broken(f"tool {name!r} has no name that every provider accepts")
        if not function.get("description"):
            raise Broken(f"tool {name!r} says nothing about itself")
        fields = parameters.get("properties", {})
        if parameters.get("type") != "object" or set(parameters.get("required", [])) - set(fields):
            raise Broken(f"tool {name!r}: its parameters are no JSON schema of an object")
        for key, schema in fields.items():
            if not {"type", "anyOf", "enum", "const", "$ref", "allOf"} & set(schema):
                raise Broken(f"tool {name!r}: parameter {key!r} has no type")
    return f"{len(tools)} tools"


@rule("reward bounds", "let every verifier give a float in [0, 1]")
def _rewards_are_bounded(subject: Subject) -> str:
    with subject.open() as env:
        episodes = [play(env, policy, seed=seed) for policy in (Random(), Nop()) for seed in range(5)]
        episodes += [play(env, Gold(), seed=0, task=index) for index in _gold_tasks(env, 2)]
    for played in episodes:
        if not all(0.0 <= reward <= 1.0 for reward in played.rewards):
            raise Broken(f"task {played.task_id}: rewards {played.rewards} leave [0, 1]")
        if any(played.rewards[:-1]):
            raise Broken(f"task {played.task_id}: rewards {played.rewards} before the end")
    return f"{len(episodes)} episodes"


@rule("gold", "make gold() solve every task, and the verifiers accept it")
def _gold_is_full(subject: Subject) -> str:
    with subject.open() as env:
        tasks = _gold_tasks(env)
        if not tasks:
            return "does not apply: the environment gives no gold"
        for index in tasks:
            played = play(env, Gold(), seed=0, task=index)
            if played.reward < FULL:
                stop = played.infos[-1].get("stop_reason")
                raise Broken(f"task {played.task_id}: gold ends as {stop} with reward {played.reward}")
    return f"full reward on {len(tasks)} tasks"


@rule("no reward for nothing", "let the verifier check what was asked for, not that nothing went wrong")
def _nothing_earns_nothing(subject: Subject) -> str:
    idle = {"the empty policy": Nop(), "a refusal": Scripted(["I'm sorry, but I cannot help with that."])}
    with subject.open() as env:
        count = min(NUM_TASKS, len(_world(env).tasks.split(_world(env).split)))
        for name, policy in idle.items():
            for index in range(count):
                if (played := play(env, policy, seed=index, task=index)).reward >= FULL:
                    raise Broken(f"task {played.task_id}: {name} gets full reward")
        solved = sum(play(env, Random(), seed=index, task=index).reward >= FULL for index in range(count))
    if solved > LUCK * count:
        raise Broken(f"a random policy solves {solved} of {count} tasks")
    return f"empty and refusing 0, random {solved} of {count}"


@rule("mutated gold fails", "compare with the task's answer exactly; do not accept what merely looks like it")
def _mutants_fail(subject: Subject) -> str:
    num_mutants = 0
    with subject.open() as env:
        for index in _gold_tasks(env):
            actions = play(env, Gold(), seed=0, task=index).actions
            place = next((i for i in reversed(range(len(actions))) if _mutant(actions[i]) is not None), None)
            if place is None:
                continue
            num_mutants += 1
            script = [*actions[:place], _mutant(actions[place]), *actions[place + 1 :]]
            played = play(env, Scripted(script), seed=0, task=index)  # type: ignore[arg-type]
            if played.reward >= FULL:
                raise Broken(f"task {played.task_id}: full reward though turn {place} was changed to {script[place]}")
    return f"{num_mutants} mutants" if num_mutants else "does not apply: no gold message can be changed"


def _mutant(message: Message) -> Message | None:
    """The message with another answer, or with other arguments; None where it has neither."""
    calls = message.get("tool_calls") or []
    if not calls:
        return assistant(f"7{message['content'][::-1]}")
    arguments = {key: _other(value) for key, value in json.loads(calls[-1]["function"]["arguments"]).items()}
    if not arguments:
        return None
    changed = raw_call(calls[-1]["function"]["name"], json.dumps(arguments), calls[-1]["id"])
    return assistant(message["content"], *calls[:-1], changed)


def _other(value: JSON) -> JSON:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return f"7{value[::-1]}" if isinstance(value, str) else value


# -- What an agent may see ---------------------------------------------------------------------------------------------


@rule(
    "answer not shown", 'keep task.answer out of prompt, tools, info and errors; or declare metadata "answer_in_prompt"'
)
def _answer_is_hidden(subject: Subject) -> str:
    """Text that every agent sees before it does anything right must not hold the answer as a word of its own. By chance
    it may, as it may hold the answer of another task: what counts is how much more often it holds its own."""
    seen: list[tuple[str, str]] = []
    with subject.open() as env:
        world = _world(env)
        for index in range(min(NUM_TASKS, len(world.tasks.split(world.split)))):
            observation, info = env.reset(seed=index, options={"task": index})
            answer = world.task.answer
            if isinstance(answer, (str, int, float)) and not info["metadata"].get("answer_in_prompt"):
                told = [observation, info, *_replies_to_nonsense(env, observation)]
                seen.append((str(answer), json.dumps(told, ensure_ascii=False, default=str)))
    if len({answer for answer, _ in seen}) < 2:
        return "does not apply: fewer than two answers that are text or numbers"
    own = np.mean([_holds(text, answer) for answer, text in seen])
    others = np.mean([_holds(text, answer) for (answer, _), (_, text) in zip(seen, seen[1:] + seen[:1], strict=True)])
    if own > others + 0.25:
        raise Broken(f"{own:.0%} of tasks show their own answer at the start, {others:.0%} that of another task")
    return f"own answer in {own:.0%} of openings, another task's in {others:.0%}"


def _replies_to_nonsense(env: gymnasium.Env, observation: Observation) -> list[Any]:
    names = [tool["function"]["name"] for tool in observation["tools"] or []]
    calls = [raw_call(name, '{"no_such_argument": 1}', f"call_{i}") for i, name in enumerate([*names, "no_such_tool"])]
    return list(env.step(assistant("", *calls))) if names else []


def _holds(text: str, answer: str) -> bool:
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


@rule("success not shown", "let tools say what happens in the world, never how it is judged")
def _success_is_hidden(subject: Subject) -> str:
    with subject.open() as env:
        world, tasks = _world(env), _gold_tasks(env, 3)
        if not tasks:
            return "does not apply: the environment gives no gold"
        judged = [play(env, Gold(), seed=1, task=index) for index in tasks]
        world.rubric = Rubric(nothing=lambda outcome: 0.0)
        unjudged = [play(env, Gold(), seed=1, task=index) for index in tasks]
    for one, other in zip(judged, unjudged, strict=True):
        if one.observations != other.observations or one.infos[:-1] != other.infos[:-1]:
            raise Broken(f"task {one.task_id}: an observation depends on the verifier")
    return f"{len(tasks)} solved episodes look the same without a verifier"


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
        tasks = _gold_tasks(env, 1)
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
