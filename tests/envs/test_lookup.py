"""Lookup-v0: the chain of the main job."""

import re

import pytest
from agentgym_envs.lookup.tasks import LEVELS

import agentgym
from agentgym import ConfigError, assistant, call
from agentgym.conformance import play
from agentgym.policies.builtin import builtin


def opened(**kwargs):
    env = agentgym.make("agentgym/Lookup-v0", **kwargs).unwrapped
    env.reset(seed=0, options={"task": 0})
    return env


def told(env, key):
    return env.step(assistant("", call("lookup", key=key)))[0]["messages"][0]["content"]


def test_the_world_is_the_recipes():
    env = opened(horizon=5)
    keys = env.task.data["keys"]
    assert sorted(keys) == list(range(10, 100))
    assert env.task.prompt == f"Start at {keys[0]}. Follow the links to the first red key."
    replies = [told(env, key) for key in keys[:5]]
    assert replies == [*(f"{key} blue" for key in keys[1:5]), f"{keys[5]} red"]
    assert env.task.answer == str(keys[5])
    assert env.step(env.task.answer)[1] == 1.0


def test_the_chain_closes_into_one_cycle():
    env = opened(horizon=1, max_turns=1000)
    key, seen = env.task.data["keys"][0], set()
    for _ in range(90):
        key = int(told(env, key).split()[0])
        seen.add(key)
    assert len(seen) == 90
    assert key == env.task.data["keys"][0]


def test_about_three_in_ten_keys_behind_the_answer_are_red():
    split = agentgym.make("agentgym/Lookup-v0", horizon=3).unwrapped.tasks.split("train")
    tails = "".join(split[index].data["colours"][4:] for index in range(200))
    assert tails.count("r") / len(tails) == pytest.approx(0.3, abs=0.02)


def test_a_later_red_key_is_no_answer():
    env = opened(horizon=2)
    keys, colours = env.task.data["keys"], env.task.data["colours"]
    other = keys[colours.index("r", 3)]
    assert env.step(str(other))[1] == 0.0


def test_horizons_are_balanced_by_index():
    split = agentgym.make("agentgym/Lookup-v0").unwrapped.tasks.split("train")
    assert [split[index].horizon for index in range(12)] == [1, 2, 3, 4, 5, 6] * 2


def test_the_turn_limit_is_four_above_the_horizon_and_can_be_set():
    for kwargs, turns in (({"horizon": 3}, 7), ({"horizon": 3, "max_turns": 20}, 20)):
        env = agentgym.make("agentgym/Lookup-v0", **kwargs)
        env.reset(seed=0)
        num_turns, truncated = 0, False
        while not truncated:
            *_, truncated, info = env.step(assistant("", call("lookup", key=env.unwrapped.task.data["keys"][0])))
            num_turns += 1
        assert (num_turns, str(info["stop_reason"])) == (turns, "max_turns")


def test_an_unknown_key_is_answered_in_words():
    assert told(opened(), 5) == "Error: there is no key 5"
    assert told(opened(), 10**50).startswith("Error: there is no key 1000")


def test_gold_finds_its_way_back_from_anywhere():
    env = opened(horizon=4)
    env.step(assistant("", call("lookup", key=env.task.data["keys"][50])))
    while env.stop_reason is None:
        _, reward, *_ = env.step(env.gold())
    assert reward == 1.0
    assert env.num_turns == 1 + 4 + 1


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_each_level_has_the_keys_and_the_text_it_says(difficulty):
    level = LEVELS[difficulty]
    env = opened(difficulty=difficulty, horizon=6)
    keys = env.task.data["keys"]
    assert len(set(keys)) == level.keys
    assert all(len(str(key)) == level.digits for key in keys)
    reply = told(env, keys[0])
    assert reply.count(",") == max(0, level.distractors - 1)
    assert f"{keys[1]} blue" in reply
    filler = reply.partition(" Link: ")[0].rstrip(".")
    assert len(filler.split()) == (level.words if level.words else 2)
    assert len(re.findall(r"\d+ (?:red|blue)", reply)) == 1 + level.distractors


def test_wrong_dials_are_named():
    for kwargs, message in (
        ({"difficulty": 9}, "levels 0 to 3"),
        ({"horizon": 90}, "has 90 keys"),
        ({"horizon": 0}, "horizons="),
        ({"demonstrator": {"speed": 1}}, "demonstrator has no 'speed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            agentgym.make("agentgym/Lookup-v0", **kwargs)


def test_the_demonstrator_is_weak_seeded_and_never_cut_by_a_wide_limit():
    env = agentgym.make("agentgym/Lookup-v0", split="demonstrations", max_turns=100)
    episodes = [play(env, builtin("demonstrator"), seed=index, task=index) for index in range(600)]
    solved = sum(episode.reward for episode in episodes) / len(episodes)
    assert 0.05 < solved < 0.25
    assert {str(episode.infos[-1]["stop_reason"]) for episode in episodes} == {"answered"}
    again = play(env, builtin("demonstrator"), seed=7, task=7)
    assert again.record == episodes[7].record
