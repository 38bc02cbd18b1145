import math

import pytest

from agentgym.errors import ConfigError
from agentgym.evaluation.intervals import Interval, wilson
from agentgym.evaluation.suite import SHIPPED, Part, load, weighted
from agentgym.registry import make


def test_a_file_names_environments_and_what_of_each(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [sampling]
        temperature = 0.7
        max_tokens = 64
        [[part]]
        env = "agentgym/Lookup-v0"
        split = "validation"
        horizon = [2, 4]
        limit = 5
        attempts = 3
        weight = 2.0
        [[part]]
        env = "agentgym/Lookup-v0"
        name = "hard look-ups"
        set = { difficulty = 1 }
        """
    )
    suite = load(str(path))
    assert suite.parts == (
        Part("agentgym/Lookup-v0", "agentgym/Lookup-v0", "validation", 5, 3, (2, 4), weight=2.0),
        Part("agentgym/Lookup-v0", "hard look-ups", set={"difficulty": 1}),
    )
    assert (suite.sampling.temperature, suite.sampling.top_p, suite.sampling.max_tokens) == (0.7, None, 64)


def test_the_shipped_suite_names_environments_that_can_be_made():
    for path in SHIPPED.glob("*.toml"):
        for part in load(path.stem).parts:
            make(part.env, split=part.split, **({"horizon": part.horizon} if part.horizon else {})).close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"names no environment: give one or more \[\[part\]\]"),
        ("[[part]]\n", "part 1: env is missing"),
        ("[[part]]\nenv = 'a/B-v0'\nlimt = 3", "part 1: there is no setting 'limt'; did you mean 'limit'"),
        ("[[part]]\nenv = 'a/B-v0'\nlimit = 'many'", "part 1: limit = 'many'"),
        ("[[part]]\nenv = 'a/B-v0'\nlimit = 0", r"suite\.toml: part 1: limit 0: give at least 1"),
        ("[[part]]\nenv = 'a/B-v0'\nweight = -1.0", "part 1: weight -1.0 is not above 0"),
        ("[[part]]\nenv = 'a/B-v0'\nhorizon = [0]", "part 1: horizon 0: a horizon is at least 1 turn"),
        ("[[part]]\nenv = 'a/B-v0'\n[[part]]\nenv = 'a/B-v0'", "'a/B-v0' occurs 2 times"),
        ("[[parts]]\nenv = 'a/B-v0'", "there is no table 'parts'; did you mean 'part'"),
        ("part = 3", "names no environment"),
        ("part = [3]", "part 1 is no table"),
        ("[[part]\n", "not readable as TOML"),
    ],
)
def test_a_wrong_file_names_the_place_and_the_fix(tmp_path, text, words):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(str(path))


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(ConfigError, match="--suite shrot: no such file, nor a shipped suite; did you mean 'short'"):
        load("shrot")


def test_the_weighted_mean_and_its_bounds_by_hand():
    a, b = Interval(0.5, 0.4, 0.6, 100, 100, 50), Interval(0.9, 0.8, 0.95, 50, 50, 45)
    found = weighted([(3.0, a), (1.0, b)])
    assert found["rate"] == pytest.approx(0.75 * 0.5 + 0.25 * 0.9)
    assert found["low"] == pytest.approx(0.6 - math.sqrt((0.75 * 0.1) ** 2 + (0.25 * 0.1) ** 2))
    assert found["high"] == pytest.approx(0.6 + math.sqrt((0.75 * 0.1) ** 2 + (0.25 * 0.05) ** 2))
    assert found["n"] == 150


def test_one_environment_weighs_all_and_an_unscored_one_leaves_the_rate_open():
    alone = wilson(7, 20)
    found = weighted([(5.0, alone)])
    assert (found["rate"], found["low"], found["high"]) == pytest.approx((alone.rate, alone.low, alone.high))
    assert weighted([(1.0, alone), (1.0, wilson(0, 0))]) == {"rate": None, "low": 0.0, "high": 1.0, "n": 20}
