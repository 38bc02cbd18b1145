"""Door-v0: the template, and how much of it an author writes."""

import inspect

from agentgym_envs.door import env as door

import agentgym
from agentgym import assistant, call


def test_the_authors_code_is_at_most_thirty_lines():
    lines = [line for line in inspect.getsource(door.DoorEnv).splitlines() if line.strip()]
    assert len(lines) <= 30


def test_a_wrong_code_shows_red_and_the_right_one_opens():
    env = agentgym.make("agentgym/Door-v0")
    env.reset(seed=1)
    code = env.unwrapped.task.answer
    assert len(code) == 4
    wrong = f"{(int(code) + 1) % 10_000:04}"
    assert env.step(assistant("", call("enter", code=wrong)))[0]["messages"][0]["content"] == "A red light."
    observation, reward, terminated, *_ = env.step(assistant("", call("enter", code=code)))
    assert (observation["messages"][0]["content"], reward, terminated) == ("The door opens.", 1.0, True)


def test_saying_that_it_is_open_does_not_open_it():
    env = agentgym.make("agentgym/Door-v0")
    env.reset(seed=1)
    assert env.step("The door is open.")[1] == 0.0
