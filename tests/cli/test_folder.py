"""Which folder a run gets, and what a stopped command says of it."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest

from agentgym.cli import Interrupted
from agentgym.cli.folder import RESULTS, newest, numbered, opened, saved, written
from agentgym.cli.policy import MAY_CHANGE
from agentgym.errors import ConfigError
from agentgym.ledger import Episode, StopReason
from agentgym.rollout.store import Store

EPISODE = Episode(
    run="eval", update=0, task_id="test:a", attempt=0, seed=0, split="test", group=0, env_id="agentgym/Door-v0",
    env_version="v0", messages=(), turns=(), reward=1.0, reward_parts={}, terminated=True, truncated=False,
    stop_reason=StopReason.ANSWERED,
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    seed: int = 0
    limit: int = 4
    output: Path | None = None
    resume: bool = False
    json: bool = False


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begin(folder: Path, **changed) -> Asked:
    config = Asked(output=folder, **changed)
    with written(config, opened(config, "any", ()), "eval", []):
        pass
    return config


def test_a_run_has_the_number_after_the_highest_of_exactly_its_name():
    for name in ("Door-v0-2", "Door-v0-7b-9", "Door-v0-x", "Door-v0"):
        Path("runs", name).mkdir(parents=True)
    assert [str(numbered("Door-v0")) for _ in range(2)] == ["runs/Door-v0-3", "runs/Door-v0-4"]
    assert str(numbered("gol[d]")) == "runs/gol[d]-1"


def test_starts_at_once_get_folders_of_their_own():
    with get_context("spawn").Pool(4) as pool:
        assert len({*pool.map(numbered, ["Door-v0"] * 24)}) == 24


def test_resume_takes_the_run_begun_last_of_exactly_that_name():
    Path("runs/Door-v0-9").mkdir(parents=True)  # never begun
    with pytest.raises(ConfigError, match=r"there is no run runs/Door-v0-\*; give its folder with --output"):
        newest("Door-v0")
    for name in ("Door-v0-2", "Door-v0-1", "Door-v0-7b-3"):
        begin(Path("runs", name))
    assert str(newest("Door-v0")) == "runs/Door-v0-1"
    assert str(opened(Asked(resume=True), "Door-v0", MAY_CHANGE)) == "runs/Door-v0-1"


def test_settings_that_may_change_do_and_others_are_named_with_both_values():
    begin(Path("x"))
    with pytest.raises(ConfigError, match="x was begun with --limit 4, not 8; use the same"):
        opened(Asked(output=Path("x"), limit=8, resume=True), "any", ("output", "resume"))
    assert opened(Asked(output=Path("x"), limit=8, resume=True), "any", ("output", "resume", "limit")) == Path("x")


def test_a_folder_of_something_else_is_left_alone():
    Path("x").mkdir()
    Path("x/thesis.tex").write_text("long")
    Path("file").write_text("")
    for output, resume, words in (
        ("x", False, "x is there already"),
        ("x", True, "x holds no run"),
        ("file", False, "file is there already"),
        ("file", True, "file holds no run"),
    ):
        with pytest.raises(ConfigError, match=words):
            opened(Asked(output=Path(output), resume=resume), "any", ())
    assert [path.name for path in Path("x").iterdir()] == ["thesis.tex"]


def test_a_run_that_is_refused_after_all_keeps_its_settings():
    begin(Path("x"))
    before = Path("x/config.toml").read_bytes()
    again = Asked(output=Path("x"), limit=8, resume=True)
    with pytest.raises(ConfigError, match="8 is too many"), written(again, Path("x"), "eval", []):
        raise ConfigError(f"{saved(Asked, Path('x')).limit} is too many")
    assert Path("x/config.toml").read_bytes() == before


def test_results_are_those_of_a_run_that_has_ended():
    begin(Path("x"))
    results = {Path("x", name): f"{name} of before, ±1 %\n" for name in RESULTS}

    def goes_on(plays: bool, error: type[BaseException]) -> None:
        assert not any(path.exists() for path in results)  # and so after kill -9
        if plays:
            with Store("x/run.sqlite") as store:
                store.add(EPISODE)
        raise error

    def stopped(error: type[BaseException], *, plays: bool) -> None:
        for path, text in results.items():
            path.write_text(text, encoding="utf-8")
        with pytest.raises((error, Interrupted)), written(Asked(output=Path("x")), Path("x"), "eval", []):
            goes_on(plays, error)

    with Store("x/run.sqlite"):
        pass
    stopped(ConfigError, plays=False)
    assert {path: path.read_text(encoding="utf-8") for path in results} == results  # it was refused after all
    stopped(KeyboardInterrupt, plays=False)
    assert not any(path.exists() for path in results)
    stopped(ConfigError, plays=True)
    assert not any(path.exists() for path in results)


@pytest.mark.parametrize("cut", [0, 5, 40])
def test_settings_that_are_cut_short_are_told(cut):
    begin(Path("x"))
    Path("x/config.toml").write_bytes(Path("x/config.toml").read_bytes()[:cut])
    with pytest.raises(ConfigError, match=r"x/config.toml is cut short"):
        saved(Asked, Path("x"))


@pytest.mark.parametrize("given", [["--output", "x"], ["--output=x"], ["--resume"], []])
def test_a_stopped_command_says_how_it_goes_on(given):
    config = Asked(output=Path("x"))
    with pytest.raises(Interrupted) as stopped, written(config, opened(config, "any", ()), "eval", ["a b", *given]):
        raise KeyboardInterrupt
    assert (
        str(stopped.value) == "Stopped; its settings are kept. Go on with:\n  agentgym eval 'a b' --output x --resume"
    )
