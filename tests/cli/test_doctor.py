"""`agentgym doctor --template`: the table of rules, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def broken_template(model_folder: Callable[[str], str], tmp_path: Path) -> Path:
    """A model's tokenizer, with a template that shows no replies."""
    from agentgym.engines.causal import load_tokenizer

    tokenizer = load_tokenizer(model_folder("llama"))
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}"
    folder = tmp_path / "broken"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((Path(model_folder("llama")) / "config.json").read_text())
    return folder


def test_doctor_says_that_a_template_keeps_the_rules(here, model_folder):
    done = here("doctor", "--template", model_folder("llama"))
    assert done.returncode == 0, done.stdout
    assert "history stays or forks" in done.stdout
    assert "<|end|> (1)" in done.stdout
    assert done.stdout.endswith("Ready: every required rule is kept.\n")


def test_doctor_names_the_rule_that_a_template_breaks_and_the_fix(here, broken_template):
    done = here("doctor", "--template", str(broken_template))
    assert done.returncode == 1
    assert "broken" in done.stdout
    assert "loop over all of" in done.stdout
    assert done.stdout.endswith("Not fit to train with: every message shown, end of a turn.\n")


def test_doctor_reads_how_a_model_speaks(here, broken_template):
    (broken_template / "agentgym.json").write_text('{"syntax": "morse"}')
    done = here("doctor", "--template", str(broken_template))
    assert done.returncode == 2
    assert "no tool-call syntax 'morse'" in done.stderr


def test_doctor_of_no_model_is_one_sentence(here):
    done = here("doctor", "--template", "./nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no model at './nowhere'")
    assert done.stdout == ""


def test_doctor_help_shows_how_to_check_a_template(here):
    done = here("doctor", "--help")
    assert done.returncode == 0
    assert "--template" in done.stdout
    assert done.stdout.endswith("example: agentgym doctor --template ./my-model\n")


def test_doctor_needs_no_transformers_to_look_at_a_machine():
    code = "import sys, agentgym.cli.doctor; sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
