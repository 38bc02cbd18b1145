"""Arithmetic-v0: tasks and verdicts of reasoning-gym."""

import subprocess
import sys

import pytest
from agentgym_envs.arithmetic.env import press, read_terms
from agentgym_envs.arithmetic.tasks import solved

import agentgym
from agentgym import ConfigError, Outcome, assistant, call
from agentgym.conformance import check, play
from agentgym.policies.builtin import builtin


def opened(**kwargs):
    env = agentgym.make("agentgym/Arithmetic-v0", **kwargs).unwrapped
    env.reset(seed=0, options={"task": 0})
    return env


def told(env, term):
    return env.step(press(term))[0]["messages"][0]["content"]


def test_the_terms_of_a_question_are_read_with_their_signs():
    assert read_terms("State the final answer to the following arithmetic problem: 46 - 23 + 81 =") == [46, -23, 81]


def test_terms_have_two_digits_and_the_horizon_counts_them_all():
    split = opened().tasks.split("train")
    for index in range(40):
        terms = read_terms(split[index].prompt)
        assert len(terms) == split[index].horizon == (2, 3, 4, 5)[index % 4]
        assert all(10 <= abs(term) <= 99 for term in terms)
        assert sum(terms) == int(split[index].answer)


def test_the_calculator_shows_the_total_and_the_terms_left():
    env = opened(horizon=3)
    one, two, three = env.terms
    signs = ["-" if term < 0 else "+" for term in env.terms]
    assert told(env, one) == f"{one} left {signs[1]} {abs(two)} {signs[2]} {abs(three)}"
    assert told(env, two) == f"{one + two} left {signs[2]} {abs(three)}"
    assert told(env, three) == f"{one + two + three} left nothing"
    assert env.step(str(one + two + three))[1] == 1.0


def test_a_wrong_operand_is_not_corrected():
    env = opened(horizon=2)
    assert told(env, 11).startswith("11 left ")
    assert told(env, 11) == "22 left nothing"


def test_the_plain_calculator_shows_the_total_only():
    env = opened(horizon=2, display="total")
    assert [told(env, term) for term in (12, -20)] == ["12", "-8"]


def test_only_the_full_score_counts():  # the package gives part of it for text that contains the answer
    task = opened().task
    assert solved(Outcome(task, None, (assistant(task.answer),))) == 1.0
    assert solved(Outcome(task, None, (assistant(f"It is {task.answer}"),))) == 0.0
    assert solved(Outcome(task, None, (assistant(task.answer, call("add", x=1)),))) == 0.0


def test_equal_expressions_never_cross_splits():
    tasks = opened(horizon=2).tasks
    prompts = {name: {tasks.split(name)[index].prompt for index in range(400)} for name in tasks.names}
    assert len(set.union(*prompts.values())) == sum(map(len, prompts.values()))


@pytest.mark.parametrize("generator", ["leg_counting", "basic_arithmetic", "spell_backward"])
def test_other_generators_by_name(generator):
    results = check("agentgym/Arithmetic-v0", generator=generator)
    assert [f"{r.rule}: {r.detail}" for r in results if not r.passed] == []


def test_a_generators_own_settings_are_passed_on():
    env = opened(generator="leg_counting", config={"min_animals": 1, "max_animals": 1})
    assert "," not in env.task.prompt.rpartition("if you have")[2]


def test_wrong_settings_are_named():
    for kwargs, message in (
        ({"generator": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"generator": "leg_counting", "config": {"wings": 2}}, "refuses config="),
        ({"config": {"min_terms": 2}}, "chain_sum is set by `horizon`"),
        ({"display": "all"}, "use 'terms' or 'total'"),
        ({"horizon": 0}, "at least 1 term"),
        ({"demonstrator": {"speed": 1}}, "demonstrator has no 'speed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            agentgym.make("agentgym/Arithmetic-v0", **kwargs)


def test_the_package_is_loaded_when_a_task_is_needed_and_its_absence_names_the_extra():
    code = (
        "import sys, agentgym; env = agentgym.make('agentgym/Arithmetic-v0'); early = 'reasoning_gym' in sys.modules;"
        "sys.modules['reasoning_gym.factory'] = sys.modules['reasoning_gym'] = None\n"
        "try: env.reset()\nexcept agentgym.ConfigError as error: print(early, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False Arithmetic-v0 needs reasoning-gym")
    assert "pip install agentgym" not in done.stdout


def test_the_demonstrator_is_weak_and_seeded():
    env = agentgym.make("agentgym/Arithmetic-v0", split="demonstrations", horizon=[2, 3, 4, 5], max_turns=100)
    episodes = [play(env, builtin("demonstrator"), seed=index, task=index) for index in range(600)]
    assert 0.10 < sum(episode.reward for episode in episodes) / len(episodes) < 0.25
    assert play(env, builtin("demonstrator"), seed=7, task=7).record == episodes[7].record
