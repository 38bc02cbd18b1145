import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentgym.cli import COMMANDS, Interrupted, main, say

COMMAND = Path(sys.executable).with_name("agentgym")
HEAVY = ("torch", "transformers", "docker", "scipy", "rich", "httpx", "matplotlib", "jinja2")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nsys.stderr.write(json.dumps([m for m in sys.modules if '.' not in m]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stderr))


@pytest.mark.parametrize("statement", ["import agentgym", "from agentgym.cli import main; main(['--help'])"])
def test_start_up_loads_nothing_heavy(statement):
    assert loaded_after(statement).isdisjoint(HEAVY)


def test_help_names_every_command_and_ends_in_an_example(agentgym):
    done = agentgym("--help")
    assert done.returncode == 0
    assert all(f"  {name}  " in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1].startswith("example: agentgym ")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_the_help_of_every_command_ends_in_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"example: agentgym {name}")


def test_a_misspelt_command_names_the_nearest(agentgym):
    done = agentgym("evla", "agentgym/Door-v0")
    assert done.returncode == 2
    assert done.stderr == "error: there is no command 'evla'; did you mean 'eval'? See `agentgym --help`.\n"


def test_version_is_that_of_the_distribution(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "agentgym 0.1.0\n"


def test_a_reader_that_goes_away_is_no_error(environment):
    code = "import sys; from agentgym.cli import main; sys.exit(main(['--help']))"
    line = f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() in ("0", "141")  # 0 where `true` was slow to go away
    assert done.stderr == ""


def test_a_full_disk_under_standard_output_is_one_sentence(environment):
    line = f"{COMMAND} --help >/dev/full"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device: free some space")
    assert done.stderr.count("\n") == 1


def raising(error, monkeypatch):
    def command(argv):
        raise error

    monkeypatch.setattr("agentgym.cli._dispatch", command)
    return main(["list"])


def test_an_interrupt_is_130_with_the_commands_own_words(monkeypatch, capsys):
    assert raising(Interrupted("Saved. Go on with --resume."), monkeypatch) == 130
    assert raising(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == "Saved. Go on with --resume.\nInterrupted.\n"


def test_a_full_disk_is_one_sentence_with_the_place(monkeypatch, capsys):
    assert raising(OSError(28, "No space left on device", "runs/x/summary.json"), monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: No space left on device (runs/x/summary.json): free some space; what is already")
    assert error.count("\n") == 1


def test_a_missing_optional_package_says_how_to_get_it(monkeypatch, capsys):
    assert raising(ModuleNotFoundError("No module named 'torch'", name="torch"), monkeypatch) == 1
    assert (
        "torch, which is not installed. In your clone of agentgym: pip install -e '.[train]'" in capsys.readouterr().err
    )


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        raising(ModuleNotFoundError("No module named 'agentgym.nonsense'", name="agentgym.nonsense"), monkeypatch)


def test_whatever_a_command_says_drives_no_terminal(capsys):
    say("\x1b]0;owned\x07 a\u202eb\tc\nd")
    assert capsys.readouterr().out == "‹U+001B›]0;owned‹U+0007› a‹U+202E›b\tc\nd\n"
