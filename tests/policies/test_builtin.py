"""Built-in policies, on real environments."""

import io
import sys

import pytest

import agentgym
from agentgym import ConfigError, assistant, call
from agentgym.conformance import play
from agentgym.loop import run_sync
from agentgym.messages import raw_call
from agentgym.policies.builtin import NAMES, Scripted, builtin, read_line


@pytest.fixture
def door():
    with agentgym.make("agentgym/Door-v0") as env:
        yield env


def test_gold_solves_and_nop_does_not(door):
    assert play(door, builtin("gold"), seed=0).rewards == [0.0, 1.0]
    assert play(door, builtin("nop"), seed=0).rewards == [0.0]


def test_random_calls_are_well_formed_and_seeded(door):
    episodes = [play(door, builtin("random"), seed=4, task=0).record for _ in range(2)]
    assert episodes[0] == episodes[1]
    assert "Error" not in "".join(play(door, builtin("random"), seed=seed).record for seed in range(20))


def test_a_script_of_messages_texts_and_functions_is_followed_and_then_ends(door):
    def enter(observation):
        return assistant("", call("enter", code=observation["messages"][0]["content"][12:16]))

    assert play(door, Scripted([assistant("", call("read_note")), enter]), seed=0).rewards == [0.0, 1.0]
    assert play(door, Scripted([]), seed=0).actions == [assistant("")]
    assert play(door, Scripted(["open"]), seed=0).actions == [assistant("open")]


def test_where_the_author_wrote_no_demonstrator_gold_gives_up_half_the_time(door):
    episodes = [play(door, builtin("demonstrator"), seed=seed, task=seed) for seed in range(400)]
    rate = sum(sum(e.rewards) for e in episodes) / 400
    assert 0.15 < rate < 0.35  # 1/4 for two messages, 5 standard errors either way


def test_an_unknown_policy_names_the_nearest():
    assert NAMES == ("gold", "nop", "random", "demonstrator", "human")
    with pytest.raises(ConfigError, match="did you mean 'gold'"):
        builtin("golt")


def test_a_person_types_calls_and_answers(door, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("read_note\n"))
    observation, _ = door.reset(seed=0)
    assert run_sync(builtin("human").begin(door, seed=0).act(observation)) == assistant("", raw_call("read_note", "{}"))
    assert "[user] Open the door.\n(tools: read_note, enter;" in capsys.readouterr().out


def test_a_typed_line_is_a_call_where_it_begins_with_a_tool():
    assert read_line("lookup key=33 name=x\n", ["lookup"]) == assistant("", call("lookup", key=33, name="x"))
    assert read_line("the lookup key=33", ["lookup"]) == assistant("the lookup key=33")
