"""Tasks and splits: content decides identity, and splits never share a problem."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import ConfigError, Task, TaskError, TaskSet


def number_task(rng):
    return Task(f"Say {rng.integers(10**6)}.")


def test_the_digest_is_the_start_of_the_sha256_of_the_content():

    import hashlib

    expected = hashlib.sha256(b'["p","a",{},null,{},{}]').hexdigest()[:16]
    assert Task("p", "a").digest == expected


def test_tasks_are_equal_by_content():
    assert Task("p", "a") == Task("p", "a")
    assert Task("p", "a") != Task("p", "b")
    assert Task("p", metadata={"horizon": 2}) != Task("p")
    assert len({Task("p"), Task("p"), Task("q")}) == 2


def test_gold_and_metadata_do_not_move_a_task_to_another_bucket():
    assert Task("p", "a", metadata={"horizon": 9}, gold=()).bucket == Task("p", "a").bucket


def test_content_that_is_no_json_is_named():
    with pytest.raises(TaskError, match=r"'p'.*not JSON"):
        _ = Task("p", answer={1, 2}).digest  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=5), unique=True, max_size=8).flatmap(st.permutations))
def test_an_id_follows_its_task_under_any_shuffle(prompts):  # trap 24
    split = TaskSet({"test": [Task(prompt) for prompt in prompts]}).split("test")
    for index, prompt in enumerate(prompts):
        assert split.id(index) == f"test:{Task(prompt).digest}"
        assert split.find(split.id(index)).prompt == prompt


def test_a_duplicate_raises_at_load_and_names_both_places():  # trap 24
    with pytest.raises(TaskError, match=r"test\[0\] is the same task as train\[1\] \('b'\)"):
        TaskSet({"train": [Task("a"), Task("b")], "test": [Task("b")]})
    with pytest.raises(TaskError, match=r"train\[1\] is the same task as train\[0\]"):
        TaskSet({"train": [Task("a"), Task("a")]})


def test_unknown_names_ids_and_indices_name_the_nearest():
    tasks = TaskSet({"train": [Task("a")], "test": [Task("b")]})
    with pytest.raises(ConfigError, match="no split 'tain'; did you mean 'train'"):
        tasks.split("tain")
    with pytest.raises(ConfigError, match="1 tasks, no index 1"):
        _ = tasks.split("test")[1]
    with pytest.raises(ConfigError, match="no task 'test:0000'"):
        tasks.find("test:0000")


def test_procedural_splits_share_nothing_even_in_a_narrow_space():
    def narrow(rng):
        return Task(str(rng.integers(300)))

    tasks = TaskSet.procedural(narrow)
    prompts = {name: {tasks.split(name)[i].prompt for i in range(150)} for name in tasks.names}
    assert list(prompts) == ["train", "validation", "test", "demonstrations"]
    for name, mine in prompts.items():
        for other, theirs in prompts.items():
            assert name == other or not mine & theirs


def test_a_procedural_task_is_drawn_from_seed_plus_index():
    tasks = TaskSet.procedural(number_task, seed=100)
    split = tasks.split("train")
    for index in range(20):
        rng = np.random.Generator(np.random.PCG64(100 + index))
        task = number_task(rng)
        while task.bucket >= 55:  # not of the training split
            task = number_task(rng)
        assert split[index] == task


def test_the_same_task_in_another_process():
    code = (
        "import numpy as np; from agentgym import Task, TaskSet;"
        "print(TaskSet.procedural(lambda rng: Task(f'Say {rng.integers(10**6)}.')).split('test').id(7))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == TaskSet.procedural(number_task).split("test").id(7)


def test_horizons_take_turns_by_index():
    tasks = TaskSet.procedural(lambda rng, h: Task(str(rng.random()), metadata={"horizon": h}), horizons=[3, 1, 2])
    assert [tasks.split("test")[i].horizon for i in range(6)] == [3, 1, 2, 3, 1, 2]


def test_an_id_is_found_by_a_set_that_never_generated_it():
    sizes = {"validation": 40}
    task_id = TaskSet.procedural(number_task, sizes=sizes).split("validation").id(33)
    fresh = TaskSet.procedural(number_task, sizes=sizes)
    assert fresh.find(task_id)[1] == fresh.split("validation")[33]
    with pytest.raises(ConfigError, match="among the 40"):
        fresh.find("validation:0123456789abcdef")


def test_take_gives_different_tasks_of_balanced_horizons():
    def few(rng, horizon):
        return Task(f"{horizon}:{rng.integers(40)}", metadata={"horizon": horizon})

    split = TaskSet.procedural(few, horizons=[1, 2]).split("train")
    plain = [split.id(i) for i in range(20)]
    assert len(set(plain)) < 20  # a draw of 10 of about 22 repeats itself
    taken = split.take(20)
    assert len({task_id for task_id, _ in taken}) == 20
    assert [task.horizon for _, task in taken] == [1, 2] * 10
    assert split.take(20) == taken
    with pytest.raises(ConfigError, match="fewer than 200 different tasks"):
        TaskSet.procedural(few, horizons=[1, 2], sizes={"train": 300}).split("train").take(200)


@pytest.mark.parametrize("start", [0, 250])
def test_a_larger_count_begins_with_the_tasks_of_a_smaller_one(start):
    def few(rng, horizon):
        return Task(f"{horizon}:{rng.integers(60)}", metadata={"horizon": horizon})

    split = TaskSet.procedural(few, horizons=[1, 2, 3], sizes={"train": 301}).split("train")
    whole = split.take(60, start)
    plain = [split.id(i % 301) for i in range(start, start + 60)]
    repeat = next(i for i, task_id in enumerate(plain) if task_id in plain[:i])
    assert [task_id for task_id, _ in split.take(repeat, start)] == plain[:repeat]
    assert all(split.take(count, start) == whole[:count] for count in range(60))
    assert [task.horizon for _, task in whole] == [split[i % 301].horizon for i in range(start, start + 60)]


def test_a_generator_that_fills_no_split_is_told_so():
    constant = TaskSet.procedural(lambda rng: Task("always the same"))
    home = next(
        name
        for name, last in (("train", 55), ("validation", 60), ("test", 85), ("demonstrations", 100))
        if Task("always the same").bucket < last
    )
    assert constant.split(home)[0].prompt == "always the same"
    for name in set(constant.names) - {home}:
        with pytest.raises(TaskError, match="too few different tasks"):
            _ = constant.split(name)[0]


@pytest.mark.parametrize("horizons", [[], [0], [1.5], [True]])
def test_horizons_are_whole_numbers(horizons):
    with pytest.raises(ConfigError, match="horizons="):
        TaskSet.procedural(number_task, horizons=horizons)
