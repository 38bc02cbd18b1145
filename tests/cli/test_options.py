from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from agentgym.cli.options import from_toml, parse, to_toml
from agentgym.errors import ConfigError


@dataclass(frozen=True)
class Learning:
    """How to learn."""

    group_size: int = 8
    """episodes per task and version; leave-one-out needs at least 2"""
    rate: float = 5e-4
    """learning rate"""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ConfigError(f"--group-size {self.group_size}: give at least 2")


@dataclass(frozen=True)
class Training:
    """Train a policy."""

    env: tyro.conf.Positional[str]
    """environment id"""
    horizon: tuple[int, ...] = (1, 2)
    """horizons to train on"""
    output: Path | None = None
    """directory to write"""
    resume: bool = False
    """go on with an earlier run"""
    learning: Learning = Learning()


def run(*argv: str) -> Training:
    return parse(Training, argv, prog="agentgym train", example="agentgym train agentgym/Door-v0")


def test_flags_are_the_field_names_in_kebab_case_without_prefix():
    config = run("agentgym/Door-v0", "--group-size", "16", "--horizon", "3", "4", "--resume", "--output", "x")
    assert config == Training("agentgym/Door-v0", (3, 4), Path("x"), True, Learning(group_size=16))


def test_a_file_gives_defaults_and_flags_override_them(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('env = "a/B-v0"\nhorizon = [5]\n[learning]\ngroup-size = 4\nrate = 1\n')
    config = run("--config", str(path), "--rate", "0.25")
    assert config == Training("a/B-v0", (5,), None, False, Learning(4, 0.25))
    assert run(f"--config={path}", "c/D-v0").env == "c/D-v0"


def test_a_file_may_be_as_flat_as_the_flags(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("group_size = 4\n")
    assert run("a/B-v0", "--config", str(path)).learning == Learning(4)


def test_what_a_run_writes_reads_back_as_the_same_configuration(tmp_path):
    config = Training('a/"B"\n\x7f-v0', (7, 9), tmp_path, True, Learning(16, 1e-05))
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config, versions={"python": "3.11", "torch": None}))
    assert run("--config", str(path)) == config


def test_a_wrong_key_names_the_file_the_key_and_the_nearest(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("group_sise = 4\n")
    with pytest.raises(ConfigError, match=r"x\.toml: there is no setting 'group_sise'; did you mean 'group_size'\?"):
        run("a/B-v0", "--config", str(path))


def test_a_wrong_type_names_the_file_the_key_and_the_value(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('[learning]\nrate = "fast"\n')
    with pytest.raises(ConfigError, match=r"x\.toml: \[learning\]: rate = 'fast': input should be a valid number"):
        run("a/B-v0", "--config", str(path))


def test_a_file_that_is_missing_or_not_toml_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        from_toml(Training, tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff = [")
    with pytest.raises(ConfigError, match=r"bad\.toml: not readable as TOML"):
        from_toml(Training, tmp_path / "bad.toml")


def test_the_classes_own_checks_hold_for_flags_and_for_files(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("group_size = 1\n")
    for argv in (["a/B-v0", "--group-size", "1"], ["a/B-v0", "--config", str(path)]):
        with pytest.raises(ConfigError, match="--group-size 1: give at least 2"):  # one sentence, in no box
            run(*argv)


def test_help_shows_field_docstrings_and_ends_in_the_example(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "learning rate" in shown
    assert "--config FILE.toml" in shown
    assert shown.rstrip().endswith("example: agentgym train agentgym/Door-v0")


def test_a_misspelt_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        run("a/B-v0", "--group-sise", "4")
    assert stop.value.code == 2
    assert "--group-size" in capsys.readouterr().err


def test_every_set_counts_wherever_it_stands():
    @dataclass(frozen=True)
    class Given:
        """Doc."""

        env: Annotated[str, tyro.conf.Positional]
        """id"""
        set: tuple[str, ...] = ()
        """pairs"""
        limit: int = 1
        """how many"""

    wanted = Given("x", ("a=1", "b=2", "c=3"), 7)
    assert parse(Given, ["x", "--set", "a=1", "b=2", "--limit", "7", "--set", "c=3"], "p", "e") == wanted
    assert parse(Given, ["x", "--set=a=1", "--set", "b=2", "--set", "c=3", "--limit", "7"], "p", "e") == wanted


def test_every_value_counts_of_a_flag_that_is_given_more_than_once():
    given = run("agentgym/Door-v0", "--horizon", "3", "--resume", "--horizon=4", "--output", "x", "--horizon", "5", "6")
    assert given == Training("agentgym/Door-v0", (3, 4, 5, 6), Path("x"), True)
