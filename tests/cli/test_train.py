"""`agentgym train` as a user meets it: small runs by the real command, wrong settings, folders, other models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from agentgym.cli import main
from agentgym.engines.causal import load_tokenizer
from agentgym.rollout.store import Store

TINY = [
    "--updates",
    "2",
    "--groups",
    "6",
    "--group-size",
    "4",
    "--warm-steps",
    "20",
    "--demonstrations",
    "60",
    "--eval-limit",
    "2",
]


def train(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentgym.cli", "train", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/x of a tiny run of the template, with a control."""
    base = tmp_path_factory.mktemp("train")
    done = train(base, "agentgym/Door-v0", *TINY, "--control-steps", "5", "--output", "runs/x")
    assert done.returncode == 0, done.stderr
    return base / "runs" / "x"


def test_a_run_leaves_what_the_readme_says(finished: Path):
    assert {"config.toml", "run.sqlite", "metrics.jsonl", "summary.json", "report.html"} <= {
        p.name for p in finished.iterdir()
    }
    summary = json.loads((finished / "summary.json").read_text())
    asked = (
        "env seed success_before success_after ci_before ci_after by_horizon h50_before h50_after seconds_warm_start "
        "seconds_train seconds_evaluate seconds_total peak_rss_bytes tokens_per_second versions"
    )
    assert set(asked.split()) <= set(summary)
    assert [json.loads(line)["update"] for line in (finished / "metrics.jsonl").read_text().splitlines()] == [0, 1]
    assert (finished / "model" / "config.json").is_file()


def test_its_model_is_evaluated_like_any_other(finished: Path):
    command = [sys.executable, "-m", "agentgym.cli", "eval", "agentgym/Door-v0", "--model", "runs/x/model"]
    done = subprocess.run(
        [*command, "--limit", "3"], cwd=finished.parents[1], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_its_model_is_trained_on_like_any_other(finished: Path):
    done = train(
        finished.parents[1], "agentgym/Door-v0", *TINY, "--model", "runs/x/model", "--output", "runs/y",
        "--objective", "reinforce", "--credit", "grpo", "--denominator", "trajectories",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((finished.parent / "y" / "summary.json").read_text())["model"] == "runs/x/model"


def test_adapters_an_anchor_and_stale_data_from_the_command_line(finished: Path):
    done = train(
        finished.parents[1], "agentgym/Door-v0", *TINY, "--model", "runs/x/model", "--output", "runs/z", "--lora-rank",
        "4", "--kl", "k2", "--kl-coef", "0.01", "--objective", "decoupled_ppo", "--staleness", "1", "--layout", "tree",
        "--gradient-checkpointing", "--lr-schedule", "cosine", "--probe-every", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = [json.loads(line) for line in (finished.parent / "z" / "metrics.jsonl").read_text().splitlines()]
    assert (list(first["staleness"]), list(second["staleness"])) == (["0"], ["2"])
    assert "kl_reference" in first
    assert first["input_retrieval_chance"] <= 0.5
    model = AutoModelForCausalLM.from_pretrained(finished.parent / "z" / "model")
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_two_processes_train_as_one_does(finished: Path):
    base, figures = finished.parents[1], []
    for name, more in (("one", []), ("two", ["--nproc", "2"])):
        done = train(base, "agentgym/Door-v0", *TINY, "--model", "runs/x/model", "--output", f"runs/{name}", *more)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (base / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        figures.append([(x["success"], x["tokens_sampled"], x["by_horizon"], x["episodes"]) for x in lines])
        with Store(base / "runs" / name / "run.sqlite", readonly=True) as store:
            assert store.runs()["train"] == 2 * 6 * 4
            assert all(task in store.tasks() for _, task, _ in store.keys("train"))
    assert figures[0] == figures[1]
    again = train(base, "agentgym/Door-v0", "--output", "runs/two", "--resume")  # two processes once more
    assert again.returncode == 0, again.stderr


def test_a_template_that_rewrites_history_is_refused_under_extend(finished: Path, tmp_path: Path):
    tokenizer = load_tokenizer(str(finished / "model"))
    shutil.copytree(finished / "model", tmp_path / "model")
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content | trim")
    tokenizer.save_pretrained(tmp_path / "model")
    asked = ["--model", "model", "--output", "x", "--history", "extend"]
    done = train(tmp_path, "agentgym/Door-v0", *TINY, *asked)
    assert (done.returncode, "history extend: the chat template of model rewrites" in done.stderr) == (2, True)


def test_what_the_learner_can_combine_is_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "learner", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 5 * 3 * 5
    legal = {(row["objective"], row["scope"]) for row in rows if not row["refused"]}
    assert ("gspo", "trajectory") in legal
    assert ("gspo", "token") not in legal
    assert main(["list", "learner"]) == 0
    assert "leave_one_out, grpo" in capsys.readouterr().out


def test_a_folder_with_a_run_is_not_written_over(finished: Path):
    done = train(finished.parents[1], "agentgym/Door-v0", *TINY, "--output", "runs/x")
    assert done.returncode == 2
    assert "runs/x holds a run already: add --resume" in done.stderr


def test_resume_refuses_other_settings_and_cut_ones(finished: Path, tmp_path: Path):
    done = train(finished.parents[1], "agentgym/Door-v0", "--output", "runs/x", "--resume", "--seed", "5")
    assert (done.returncode, "was begun with --seed 0, not 5" in done.stderr) == (2, True)
    text = (finished / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text[: len(text) // 3])
    done = train(tmp_path, "agentgym/Door-v0", "--output", str(tmp_path), "--resume")
    assert (done.returncode, "is cut short" in done.stderr) == (2, True)


def test_a_folder_in_use_is_refused(tmp_path: Path):
    import fcntl

    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = train(tmp_path, "agentgym/Door-v0", *TINY, "--output", str(tmp_path))
    assert done.returncode == 2
    assert "is in use by another process" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("agentgym/Lokup-v0", "did you mean 'agentgym/Lookup-v0'"),
        ("agentgym/Door-v0 --lr nan", "lr is nan"),
        ("agentgym/Door-v0 --heads 0", "heads is 0"),
        ("agentgym/Door-v0 --device foo", "device 'foo' is unknown; use cpu or cuda"),
        ("agentgym/Door-v0 --temperature 0", "temperature is 0"),
        ("agentgym/Door-v0 --eval-start -5", "eval_start is -5"),
        ("agentgym/Door-v0 --credit same_state", "credit same_state needs state_key()"),
        ("agentgym/Door-v0 --credit luck", "no credit 'luck': there are outcome_mean, leave_one_out"),
        ("agentgym/Door-v0 --credit leave_one_ot", "did you mean 'leave_one_out'"),
        ("agentgym/Door-v0 --credit gigpo", "credit gigpo needs state_key()"),
        ("agentgym/Door-v0 --objective gspo --scope token", "objective gspo has no scope token"),
        ("agentgym/Door-v0 --correction tis", "correction tis with ppo_clip: its ratio is taken"),
        ("agentgym/Door-v0 --kl k1 --kl-coef 0.1", "kl k1 in the loss has a gradient of zero on average"),
        ("agentgym/Door-v0 --objective nowhere:loss", "'nowhere:loss': No module named 'nowhere'"),
        ("agentgym/Door-v0 --top-p 0.9", "top_p 0.9 cuts the distribution that is sampled from"),
        ("agentgym/Door-v0 --staleness 1 --nproc 2", "staleness 1 with nproc 2"),
        ("agentgym/Door-v0 --lora-rank 4", "lora_rank adapts a model that can already speak; give --model"),
        ("agentgym/Door-v0 --group-size 1", "group_size is 1; a group of one has no baseline"),
        ("agentgym/Door-v0 --curriculum success --curriculum-success 2", "curriculum_success is 2.0"),
        ("agentgym/Door-v0 --context last --context-keep 0", "context_keep=0"),
        ("agentgym/Door-v0 --context summarise --context-tokens 99999", "context_tokens=99999"),
        ("agentgym/Door-v0 --warm-steps 0", "warm_steps is 0"),
        ("agentgym/Door-v0 --model ./nowhere", "no model at './nowhere'"),
        ("agentgym/Door-v0 --resume", "there is no run runs/Door-v0-*"),
        ("agentgym/Door-v0 --output /dev/null/x", "/dev/null"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    args: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *args.split()]) != 0
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_start_that_failed_leaves_its_folder_free(tmp_path: Path):
    assert train(tmp_path, "agentgym/Door-v0", *TINY, "--model", "./nowhere", "--output", "x").returncode == 2
    done = train(tmp_path, "agentgym/Door-v0", *TINY, "--updates", "0", "--output", "x")
    assert done.returncode == 0, done.stderr


def test_controls_stand_beside_the_claim_and_are_run_once(tmp_path: Path):
    args = ["agentgym/Door-v0", *TINY, "--output", "runs/x"]
    done = train(tmp_path, *args, "--controls")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "x"
    summary = json.loads((folder / "summary.json").read_text())
    for reward in ("random", "format"):
        theirs = json.loads((folder / "controls" / reward / "summary.json").read_text())
        assert theirs["config"]["loop"]["reward"] == reward
        assert theirs["success_before"] == summary["success_before"]  # the same start
        told = summary["controls"][reward]
        assert told["success_after"] == theirs["success_after"]
        assert told["gain_over_it"]["value"] == pytest.approx(summary["success_after"] - theirs["success_after"])
        assert f"control: {reward} reward" in done.stdout
    lines = (folder / "controls/random/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["reward_std"] > 0.2 for line in lines)  # a coin's is 0.5: it falls within groups
    assert "random reward" in (folder / "report.html").read_text()
    before = {p: p.stat().st_mtime for p in folder.glob("controls/*/run.sqlite")}
    assert train(tmp_path, "agentgym/Door-v0", "--output", "runs/x", "--resume").returncode == 0
    assert {p: p.stat().st_mtime for p in folder.glob("controls/*/run.sqlite")} == before
