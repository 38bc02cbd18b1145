"""Spaces of messages and text, and what Gymnasium does with them."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import ConfigError, assistant, call
from agentgym.messages import raw_call
from agentgym.spaces import ActionSpace, ObservationSpace, TextSpace, as_message, cut

SPACES = [ActionSpace(["lookup"]), ObservationSpace(), TextSpace()]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_samples_are_seeded_and_contained(space):
    space.seed(5)
    first = [space.sample() for _ in range(30)]
    space.seed(5)
    assert [space.sample() for _ in range(30)] == first
    assert all(sample in space for sample in first)
    assert len({repr(sample) for sample in first}) > 10


def test_sampled_actions_are_texts_answers_and_calls():
    space = ActionSpace(["lookup"], seed=1)
    samples = [space.sample() for _ in range(50)]
    assert any(isinstance(sample, str) for sample in samples)
    assert any(isinstance(sample, dict) and len(sample.get("tool_calls", [])) == 2 for sample in samples)


def test_spaces_are_equal_by_kind_and_tools():
    assert ActionSpace(["a"]) == ActionSpace(["a"]) != ActionSpace(["b"])
    assert ObservationSpace() == ObservationSpace() != TextSpace()


@pytest.mark.parametrize("wrong", [None, 3, {"messages": []}, {"messages": ["x"], "tools": None}])
def test_what_is_no_observation_is_not_contained(wrong):
    assert wrong not in ObservationSpace()


@pytest.mark.parametrize("wrong", [None, 3, {"role": "user", "content": "x"}, {"content": 3}, {"tool_calls": "x"}])
def test_what_is_no_action_is_not_contained(wrong):
    assert wrong not in ActionSpace()


@given(st.text(st.characters()))
def test_any_text_is_in_the_text_space_and_is_an_action(text):
    assert text in TextSpace()
    assert text in ActionSpace()
    as_message(text)["content"].encode()


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["id", "function", "name", "arguments", "type"]), x),
        max_leaves=8,
    )
)
def test_whatever_stands_for_a_call_becomes_one(junk):
    (made,) = as_message({"tool_calls": [junk]})["tool_calls"]
    assert isinstance(made["function"]["name"], str)
    assert isinstance(made["function"]["arguments"], str)
    assert made["id"]


def test_missing_and_duplicate_ids_are_repaired_and_good_ones_kept():
    calls = [
        raw_call("a", "{}", "call_1"),
        raw_call("a", "{}", ""),
        raw_call("a", "{}", "call_1"),
        raw_call("a", "{}", "x"),
    ]
    ids = [c["id"] for c in as_message(assistant("", *calls))["tool_calls"]]
    assert ids[0] == "call_1"
    assert ids[3] == "x"
    assert len(set(ids)) == 4


def test_arguments_given_as_an_object_become_text():
    message = as_message({"tool_calls": [{"id": "a", "function": {"name": "lookup", "arguments": {"key": 33}}}]})
    assert message["tool_calls"] == [raw_call("lookup", '{"key": 33}', "a")]


def test_only_what_a_message_may_hold_is_kept():
    given = {"role": "assistant", "content": None, "num_tokens": np.int64(3), "finish_reason": "tool_calls", "audio": 1}
    assert as_message(given) == {"role": "assistant", "content": "", "num_tokens": 3}


@pytest.mark.parametrize("name", ["num_tokens", "prompt_tokens"])
@pytest.mark.parametrize("count", [-1, 1 << 40, 10**400, 1.5, True, "many"])
def test_what_is_no_count_of_tokens_is_refused_by_its_name(name, count):
    with pytest.raises(ConfigError, match=f"{name} is a count"):
        as_message({"content": "", name: count})
    assert as_message({"content": "", name: (1 << 40) - 1})[name] == (1 << 40) - 1


def test_cut_keeps_what_fits_and_counts_the_rest():
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "abc\n[cut here: 3 of 4 characters are shown]"


def test_masks_are_refused():
    with pytest.raises(ConfigError, match="no mask"):
        TextSpace().sample(mask=1)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_environments(mode):
    extra = {"shared_memory": False} if mode == "async" else {}
    envs = gymnasium.make_vec("agentgym/Lookup-v0", num_envs=2, vectorization_mode=mode, vector_kwargs=extra)
    try:
        observations, infos = envs.reset(seed=3)
        prompts = [observation["messages"][0]["content"] for observation in observations]
        starts = [int(prompt.split()[2].rstrip(".")) for prompt in prompts]
        calls = tuple(assistant("", call("lookup", key=start)) for start in starts)
        observations, rewards, terminated, truncated, _ = envs.step(calls)
        assert all(o["messages"][0]["content"].split()[1] in ("red", "blue") for o in observations)
        assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([0, 0], [False] * 2, [False] * 2)
        assert len(set(infos["task_id"])) == 2
    finally:
        envs.close()


def test_shared_memory_is_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r'vector_kwargs=\{"shared_memory": False\}'):
        gymnasium.make_vec("agentgym/Door-v0", num_envs=2, vectorization_mode="async")
