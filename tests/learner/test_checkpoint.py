"""Saved states: whole or not at all, the newest few, and one sentence where one cannot be read."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentgym.errors import ConfigError
from agentgym.learner.checkpoint import Checkpoints, weights_hash
from agentgym.learner.metrics import MetricsLog, read_metrics
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig


@pytest.fixture
def learner(load, random_ledger, trajectory) -> Learner:
    made = Learner(load(), OptimizerConfig(), total_steps=9)
    made.step([trajectory(random_ledger(0))], ObjectiveConfig())
    return made


def fresh(load, kind: str = "llama") -> Learner:
    return Learner(load(kind), OptimizerConfig(), total_steps=9)


def test_trap_47_a_state_comes_back_with_weights_optimiser_random_numbers_and_progress(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    progress = {"before": {"rate": 0.1, "points": [{"n": 3}]}, "h50": None, "text": "naïve"}
    checkpoints.save(learner, 4, progress)
    expected = torch.rand(3)
    torch.manual_seed(99)
    other = fresh(load)
    assert checkpoints.load(other) == (4, progress)
    assert torch.equal(torch.rand(3), expected)
    assert weights_hash(other.lm) == weights_hash(learner.lm)
    ours, theirs = learner.state_dict(), other.state_dict()
    assert theirs["version"] == 1
    for a, b in zip(ours["optimizers"], theirs["optimizers"], strict=True):
        assert a["param_groups"] == b["param_groups"]
        for key, state in a["state"].items():
            assert all(torch.equal(state[name], b["state"][key][name]) for name in state)


def test_trap_47_every_process_wide_generator_goes_on_where_it_was(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second number for next time
    checkpoints.save(learner, 1, {})

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), *np.random.standard_normal(3), *torch.rand(3).tolist()]

    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    checkpoints.load(fresh(load))
    assert drawn() == expected


def test_a_checkpoint_is_a_model_that_others_open(learner, tmp_path):
    path = Checkpoints(tmp_path, beside=lambda folder: (folder / "more.txt").write_text("kept")).save(learner, 1, {})
    opened = AutoModelForCausalLM.from_pretrained(path / "model")
    ids = torch.arange(9)[None]
    assert torch.equal(opened(input_ids=ids).logits, learner.lm.model.eval()(input_ids=ids).logits)
    assert (path / "model" / "more.txt").read_text() == "kept"


def test_the_best_is_kept_beside_the_newest(learner, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update, score in enumerate([0.1, 0.7, 0.3, None, 0.7, 0.2, 0.5]):
        checkpoints.save(learner, update, {}, score=score)
    # of two equals the newer; then 5 and 6, which are the newest
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["update-000004", "update-000005", "update-000006"]
    assert checkpoints.best().name == "update-000004"


def test_a_state_saved_again_without_a_score_keeps_the_one_it_had(learner, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for update, score in ((10, 0.2), (20, 0.9), (20, None)):
        checkpoints.save(learner, update, {}, score=score)
    assert checkpoints.best().name == "update-000020"


def test_a_state_that_a_kill_kept_from_its_place_is_put_back(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = checkpoints.save(learner, 3, {"at": 3})
    path.replace(tmp_path / "before-update-000003")  # killed between the two renames
    assert checkpoints.load(fresh(load)) == (3, {"at": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["update-000003"]


def test_where_nothing_was_saved_nothing_is_loaded(learner, tmp_path):
    before = weights_hash(learner.lm)
    assert Checkpoints(tmp_path / "nothing").load(learner) is None
    assert weights_hash(learner.lm) == before


def test_the_newest_states_are_kept_and_the_newest_is_loaded(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update in (0, 9, 10, 100, 2):
        checkpoints.save(learner, update, {"at": update})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["update-000010", "update-000100"]
    assert checkpoints.load(fresh(load)) == (100, {"at": 100})


def test_a_writer_killed_in_the_middle_leaves_the_last_whole_state(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(learner, 1, {})
    aside = tmp_path / "aside.tmp"  # what a kill leaves behind
    aside.mkdir()
    (aside / "state.pt").write_bytes((path / "state.pt").read_bytes()[:1000])
    assert checkpoints.load(fresh(load)) == (1, {})
    checkpoints.save(learner, 2, {})
    assert checkpoints.load(fresh(load)) == (2, {})
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("break_it", [
    lambda b: b"",
    lambda b: b"not a checkpoint at all",
    lambda b: b[:100],
    lambda b: b[: len(b) // 2],
    lambda b: b[:-1],
    lambda b: bytes(len(b)),
    lambda b: b[:2000] + bytes(5000) + b[7000:],
    lambda b: b.replace(b"weights", b"weighty"),
])  # fmt: skip
def test_a_state_that_cannot_be_read_names_itself_and_the_way_out(learner, load, tmp_path, break_it):
    path = Checkpoints(tmp_path).save(learner, 3, {})
    state = path / "state.pt"
    state.write_bytes(break_it(state.read_bytes()))
    with pytest.raises(ConfigError, match=rf"checkpoint {path} cannot be read \(.*Delete it: --resume then takes"):
        Checkpoints(tmp_path).load(fresh(load))


def test_flipped_bits_are_refused_or_change_nothing(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(learner, 3, {"at": 3}) / "state.pt"
    whole, good = path.read_bytes(), weights_hash(learner.lm)
    chance, refused = np.random.default_rng(0), 0
    for at in np.concatenate([chance.integers(0, 4000, 30), chance.integers(0, len(whole), 30)]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.integers(8))]) + whole[at + 1 :])
        other = fresh(load)
        try:
            found = checkpoints.load(other)
        except ConfigError:
            refused += 1
            continue
        assert (found, weights_hash(other.lm)) == ((3, {"at": 3}), good)
    assert refused > 30


def test_a_state_of_another_model_is_one_sentence(learner, load, tmp_path):
    path = Checkpoints(tmp_path).save(learner, 3, {})
    with pytest.raises(ConfigError, match=f"checkpoint {path} cannot be read"):
        Checkpoints(tmp_path).load(fresh(load, "qwen3"))


def test_the_one_before_is_taken_when_a_broken_one_is_deleted(learner, load, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(learner, 1, {})
    broken = checkpoints.save(learner, 2, {})
    (broken / "state.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="update-000002"):
        checkpoints.load(fresh(load))
    shutil.rmtree(broken)
    assert checkpoints.load(fresh(load)) == (1, {})


def test_weights_have_one_name_per_bit_pattern(load):
    lm = load("qwen3")
    name = weights_hash(lm)
    assert name == weights_hash(load("qwen3"))
    assert len(name) == 16
    with torch.no_grad():
        weight = lm.model.lm_head.weight
        old = weight[3, 3].clone()
        weight[3, 3] = torch.nextafter(old, torch.tensor(9.0))
        assert weights_hash(lm) != name
        weight[3, 3] = old
    assert weights_hash(lm) == name
    assert weights_hash(load("qwen3", "bfloat16")) != name


# -- metrics.jsonl -----------------------------------------------------------------------------------------------------


def test_trap_46_a_resumed_run_drops_the_lines_its_checkpoint_does_not_know(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, updates_done=0)
    for update in range(5):
        log.add({"update": update, "value": 1})
    with path.open("a") as file:
        file.write('{"update": 5, "val')  # torn by a kill
    resumed = MetricsLog(path, updates_done=3)
    resumed.add({"update": 3, "value": 2})
    assert [(r["update"], r["value"]) for r in read_metrics(path)] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    assert len(path.read_text().splitlines()) == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for broken in ("{", "[]", '{"value": 1}', "null"):
        path.write_text(f'{{"update": 0}}\n{broken}\n{{"update": 2}}\n')
        with pytest.raises(ConfigError, match=f"{path}, line 2: not a record of an update"):
            read_metrics(path)


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path / "nothing.jsonl") == []


def test_every_line_is_on_the_disk_when_it_is_added(tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
from agentgym.learner.metrics import MetricsLog
log = MetricsLog(Path({str(tmp_path / "m.jsonl")!r}), updates_done=0)
for update in range(10):
    log.add({{"update": update}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ)
    assert process.returncode == -signal.SIGKILL
    lines = Path(tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == list(range(10))
