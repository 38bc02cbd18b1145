"""`agentgym sandbox`, as a user meets it."""

from __future__ import annotations

import json

import pytest

from agentgym.cli import main

pytestmark = pytest.mark.usefixtures("bubblewrap")


def test_exec_prints_the_output_and_ends_with_the_commands_status(agentgym):
    done = agentgym("sandbox", "exec", "--backend", "bubblewrap", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_exec_prints_one_object_where_it_is_asked_to(agentgym):
    done = agentgym("sandbox", "exec", "--backend", "bubblewrap", "--timeout", "1", "--memory", "128m", "--json", "--",
                    "sh", "-c", "echo out; sleep 30")  # fmt: skip
    made = json.loads(done.stdout)
    assert done.returncode == 0
    assert 1 <= made.pop("duration_s") < 10
    assert made == {"stdout": "out\n", "stderr": "", "exit_code": 143, "timed_out": True, "truncated": False,
                    "oom": False, "carrier": "agent"}  # fmt: skip


def test_exec_says_what_was_wrong_with_the_command_line(capsys):
    assert main(["sandbox", "exec", "--backend", "bubblewrap"]) == 2
    assert "write it after `--`" in capsys.readouterr().err
    assert main(["sandbox", "exec", "--memory", "lots", "--", "true"]) == 2
    assert "'lots' is no size" in capsys.readouterr().err
    assert main(["sandbox", "exce"]) == 2
    assert "did you mean 'exec'" in capsys.readouterr().err


def test_a_users_name_may_be_root_inside(capsys):
    assert main(["sandbox", "exec", "--backend", "bubblewrap", "--user", "root", "--", "id", "-u"]) == 0
    assert capsys.readouterr().out == "0\n"


def test_ls_and_reap_speak_of_what_there_is(capsys):
    assert main(["sandbox", "reap", "--backend", "bubblewrap"]) == 0
    assert main(["sandbox", "ls", "--backend", "bubblewrap"]) == 0


def test_bench_measures_a_backend(capsys):
    assert main(["sandbox", "bench", "--backend", "bubblewrap", "--count", "5"]) == 0
    assert "/bin/true" in capsys.readouterr().out


def test_build_wants_one_source(capsys):
    assert main(["sandbox", "build"]) == 2
    assert "--debootstrap" in capsys.readouterr().err
    assert main(["sandbox", "build", ".", "--base-map", "nonsense"]) == 2
    assert "FROM=LOCAL" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["exec", "build", "ls", "reap", "bench"])
def test_every_part_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sandbox", name, "--help"])
    assert stop.value.code == 0
    assert "example: agentgym sandbox exec" in capsys.readouterr().out
