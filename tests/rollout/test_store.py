"""One file per run: what is finished is kept, whoever kills, fills, cuts or reads at the same time."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentgym.errors import Failure, FailureKind, StoreError
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn
from agentgym.messages import assistant, user
from agentgym.rollout.store import Store, opening


def episode(attempt: int, *, update: int = 0, run: str = "train", reward: float = 0.5) -> Episode:
    ids = np.random.default_rng(attempt).integers(0, 50_000, 200)  # does not compress to nothing
    ledger = Ledger([Segment(ids, Source.OBSERVED, 0), Segment(ids, Source.SAMPLED, 0, -ids / 1e5, 0)])
    return Episode(
        run=run, update=update, task_id="train:a", attempt=attempt, seed=1, split="train", group=0, env_id="a/B-v0",
        env_version="v0", messages=(user(f"Say {attempt}."),), turns=(Turn(0.5, "here"),), reward=reward,
        reward_parts={}, terminated=True, truncated=False, stop_reason=StopReason.ANSWERED, ledger=ledger,
    )  # fmt: skip


def filled(path: Path, count: int = 30) -> Path:
    with Store(path) as store:
        for attempt in range(count):
            store.add(episode(attempt), {"prompt": f"Say {attempt}."})
    return path


def attempts(path: Path) -> list[int]:
    with Store(path, readonly=True) as store:
        return [e.attempt for e in store.episodes()]


@pytest.fixture
def writer(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A process of its own that stores episode after episode and says so after each."""
    (tmp_path / "made.py").write_text(Path(__file__).read_text())

    def started(body: str, *before: str) -> subprocess.Popen[str]:
        script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom made import *\n{body}"
        return subprocess.Popen(
            [*before, sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return started


# -- one attempt, one record ------------------------------------------------------------------------------------------


def test_trap_45_a_second_finished_attempt_for_a_slot_is_refused(run_path):
    with Store(run_path) as store:
        store.add(episode(0, reward=0.25))
        with pytest.raises(StoreError, match=r"attempt \('train', 0, 'train:a', 0\) is already finished"):
            store.add(episode(0, reward=0.75))
        assert [e.reward for e in store.episodes()] == [0.25]
        for other in (episode(1), episode(0, update=1), episode(0, run="before")):
            store.add(other)  # another attempt, update or phase is another slot
        assert store.runs() == {"train": 3, "before": 1}


def test_trap_45_an_update_played_again_replaces_its_episodes_once(run_path):
    with Store(run_path) as store:
        for update in range(3):
            store.add(episode(0, update=update, reward=0.1 * update))
        store.reopen("train", from_update=1)
        assert store.keys("train") == {(0, "train:a", 0)}
        store.add(episode(0, update=1, reward=0.9))
        with pytest.raises(StoreError, match="already finished"):
            store.add(episode(0, update=1, reward=0.8))
        with pytest.raises(StoreError, match="already finished"):
            store.add(episode(0, update=0, reward=0.8))  # before the reopened ones
    with Store(run_path, readonly=True) as store:
        # not yet played again: what was recorded stays
        assert {e.update: e.reward for e in store.episodes()} == {0: 0.0, 1: 0.9, 2: 0.2}


def test_reading_can_be_narrowed_to_a_phase_an_update_and_a_number(run_path):
    with Store(run_path) as store:
        for update in range(3):
            for attempt in range(2):
                store.add(episode(attempt, update=update))
        store.add(episode(0, run="before"))
        assert [e.key for e in store.episodes(run="train", update=1)] == [("train", 1, "train:a", a) for a in (0, 1)]
        assert [e.attempt for e in store.episodes(limit=3)] == [0, 1, 0]
        assert len(store.keys("train")) == 6
        assert list(store.episodes(run="nothing")) == []


def test_the_task_of_an_episode_is_kept_once(run_path):
    filled(run_path, 3)
    with Store(run_path, readonly=True) as store:
        assert store.tasks() == {"train:a": {"prompt": "Say 0."}}


# -- killed, full, read meanwhile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("enough", [1, 40])
def test_trap_46_a_killed_writer_loses_no_finished_episode(writer, run_path, enough):
    process = writer(f"""
store = Store({str(run_path)!r})
for attempt in range(100_000):
    store.add(episode(attempt))
    print(attempt, flush=True)
""")
    said = [int(process.stdout.readline()) for _ in range(enough)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    kept = attempts(run_path)
    assert kept == list(range(len(kept)))
    assert len(kept) in (len(said), len(said) + 1)  # the last may have been written and not said
    with Store(run_path) as store:  # and the run goes on
        store.add(episode(len(kept)))


def test_a_full_disk_is_one_sentence_and_keeps_what_was_finished(writer, tmp_path):
    # A disk of 400 kB, where the machine lets us make one; else a limit on the size of files.
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=400k tmpfs {disk}"
    own = ("unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "sh")
    is_real = (
        shutil.which("unshare") is not None and subprocess.run([*own, "true"], capture_output=True).returncode == 0
    )
    process = writer(
        f"""
import resource
ballast = Path({str(disk)!r}) / "ballast"
ballast.write_bytes(bytes(200_000))
store = Store(ballast.with_name("run.sqlite"))
for attempt in range(5):
    store.add(episode(attempt))
if not {is_real}:
    size = ballast.with_name("run.sqlite-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, resource.RLIM_INFINITY))
try:
    for attempt in range(5, 10_000):
        store.add(episode(attempt))
except StoreError as error:
    print(error)
ballast.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(attempts(store.path) == list(range(attempt)))
store.add(episode(attempt))
store.close()
print(attempts(store.path) == list(range(attempt + 1)))
""",
        *(own if is_real else ()),
    )
    said, errors = process.communicate(timeout=60)
    assert errors == ""
    sentence, kept, goes_on = said.splitlines()
    assert sentence.startswith(f"{disk}/run.sqlite: ")
    assert ("the disk is full. Free some space and go on with --resume" if is_real else "disk I/O error") in sentence
    assert (kept, goes_on) == ("True", "True")


def test_a_reader_reads_while_the_run_writes(run_path):
    counts: list[int] = []
    with Store(run_path) as store:
        store.add(episode(0))
        done = threading.Event()

        def write() -> None:
            for attempt in range(1, 150):
                store.add(episode(attempt))
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        while not done.is_set():
            counts.append(len(attempts(run_path)))
        thread.join()
    assert len(counts) > 3
    assert counts == sorted(counts)
    assert len(attempts(run_path)) == 150


def test_threads_that_write_at_once_lose_nothing(run_path):
    with Store(run_path) as store:
        threads = [
            threading.Thread(target=lambda t=t: [store.add(episode(100 * t + i)) for i in range(25)]) for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(attempts(run_path)) == sorted(100 * t + i for t in range(4) for i in range(25))


def test_a_closed_run_is_one_file_that_copies_alone(run_path, tmp_path):
    filled(run_path)
    assert [p.name for p in run_path.parent.iterdir() if p.stat().st_size] == [run_path.name]
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(run_path, tmp_path / "elsewhere" / "copy.sqlite"))
    run_path.unlink()
    assert attempts(copy) == list(range(30))


def test_a_reader_that_stays_open_does_not_keep_the_run_from_closing(run_path, tmp_path):
    with Store(run_path) as store:
        store.add(episode(0))
        reader = Store(run_path, readonly=True)
        assert len(list(reader.episodes())) == 1
    copy = Path(shutil.copy(run_path, tmp_path / "copy.sqlite"))
    assert attempts(copy) == [0]
    reader.close()


def test_what_a_reader_tries_to_write_is_refused(run_path):
    filled(run_path, 2)
    with Store(run_path, readonly=True) as store, pytest.raises(StoreError, match="readonly"):
        store.add(episode(5))
    assert attempts(run_path) == [0, 1]


# -- files that cannot be used ----------------------------------------------------------------------------------------


def test_a_run_that_does_not_exist_is_named_and_not_made(tmp_path):
    path = tmp_path / "runs" / "nothing" / "run.sqlite"
    with pytest.raises(StoreError, match=f"no run at {path}: the file does not exist"):
        Store(path, readonly=True)
    assert not path.exists()


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="Is the folder there, writable"):
        Store(tmp_path / "nothing" / "run.sqlite")


def test_a_file_that_is_no_run_is_one_sentence(tmp_path):
    for name, content in {"text": b"hello " * 1000, "zeros": bytes(5000)}.items():
        path = tmp_path / name
        path.write_bytes(content)
        for readonly in (True, False):
            with pytest.raises(StoreError, match=f"{path} is corrupt: .*recover"):
                Store(path, readonly=readonly)
        assert path.read_bytes() == content  # whatever it is, it is somebody's


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "run #1? 100%20 naïve & [x]"
    folder.mkdir()
    assert attempts(filled(folder / "run.sqlite", 2)) == [0, 1]
    assert (folder / "run.sqlite").stat().st_size
    assert list(tmp_path.iterdir()) == [folder]


def test_a_run_that_may_only_be_read_can_be_read(writer, run_path):
    # Somebody else's run in a folder one may not write to: no lock and no log can be laid beside it.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(filled(run_path, 3), folder)
        for path, mode in ((Path(folder) / run_path.name, 0o444), (Path(folder), 0o555)):
            path.chmod(mode)
        process = writer(f"""
import os
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
print(attempts(Path({folder!r}) / {run_path.name!r}))
""")
        said, errors = process.communicate(timeout=60)
        Path(folder).chmod(0o755)
    assert (said.strip(), errors) == ("[0, 1, 2]", "")


def test_another_programs_database_is_left_alone(run_path):
    with sqlite3.connect(run_path) as db:
        db.execute("CREATE TABLE cats (name TEXT)")
    db.close()
    for readonly in (False, True):
        with pytest.raises(StoreError, match="has schema 0"):
            Store(run_path, readonly=readonly)
    with sqlite3.connect(run_path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("cats",)]


def test_a_later_schema_is_refused(run_path):
    filled(run_path, 1)
    with sqlite3.connect(run_path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="has schema 99; this agentgym reads"):
        Store(run_path, readonly=True)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_file_cut_short_is_corrupt_and_never_a_shorter_run(run_path, share):
    whole = filled(run_path).read_bytes()
    run_path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(StoreError, match="is corrupt"):
        attempts(run_path)


def test_flipped_bits_are_found_or_change_nothing(run_path):
    whole = filled(run_path, 8).read_bytes()
    with Store(run_path, readonly=True) as store:
        good = list(store.episodes())
    chance = np.random.default_rng(0)
    found = 0
    for _ in range(150):
        at = int(chance.integers(len(whole)))
        run_path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.integers(8))]) + whole[at + 1 :])
        try:
            with Store(run_path, readonly=True) as store:
                read = list(store.episodes())
        except StoreError as error:
            found += str(run_path) in str(error)
            continue
        for episode_read in read:
            twin = good[episode_read.attempt] if episode_read.attempt < len(good) else None
            if twin is not None and episode_read.ledger is not None:
                assert episode_read.ledger == twin.ledger  # never another token
    assert found > 20


def test_an_unreadable_record_names_the_file(run_path):
    filled(run_path, 1)
    broken: dict[str, Any] = {"record": b"{}", "ledger": b"[]", "stop_reason": "tired", "failure": "{"}
    for column, value in broken.items():
        copy = Path(shutil.copy(run_path, run_path.with_name(f"{column}.sqlite")))
        with sqlite3.connect(copy) as db:
            db.execute(f"UPDATE episodes SET {column}=?", (value,))
        with pytest.raises(StoreError, match=re.escape(str(copy))):
            attempts(copy)


def test_time_spent_storing_an_episode_is_small(run_path):
    with Store(run_path) as store:
        start = time.perf_counter()
        for attempt in range(200):
            store.add(episode(attempt))
        assert (time.perf_counter() - start) / 200 < 0.05  # measured: 0.4 ms


def test_a_process_that_forked_after_opening_does_not_write_for_its_parent(run_path):
    with Store(run_path) as store:
        store.add(episode(0))
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        store.add(episode(1))
    assert attempts(run_path) == [0, 1]


def test_the_columns_of_an_episode_say_what_its_record_says(tmp_path):
    path = tmp_path / "run.sqlite"
    failed = dataclasses.replace(episode(1), failure=Failure(FailureKind.TASK, "TaskError", "no answer"))
    blamed = dataclasses.replace(episode(2), failure=Failure(FailureKind.POLICY, "PolicyError", "out of memory"))
    with Store(path) as store:
        for each in (episode(0, reward=1.0), failed, blamed, episode(3, run="after")):
            store.add(each)
        whole, light = list(store.episodes(run="train")), store.outcomes(run="train")
        assert len(store.outcomes()) == 4
        assert [e.attempt for e in store.episodes(run="train", task="train:a", attempt=2)] == [2]
    for one, two in zip(whole, light, strict=True):
        assert (one.key, one.success, one.counts, one.seed) == (two.key, two.success, two.counts, two.seed)
        assert (one.reward, one.split, one.env_id, one.env_version) == (
            two.reward,
            two.split,
            two.env_id,
            two.env_version,
        )


def test_an_opening_is_what_is_told_before_the_policy_speaks():
    told = (user("Say 1."), assistant("1"), user("Again."))
    assert opening(told) == opening(told[:1]) != opening((user("Say 2."),))
    assert opening((user("\ud800"),)) != opening(())  # text that has no UTF-8


def test_a_file_from_before_openings_were_kept_is_read_and_written_on(tmp_path):
    path = filled(tmp_path / "run.sqlite", 3)
    with sqlite3.connect(path) as db:
        db.execute("DROP INDEX light")
        db.execute("ALTER TABLE episodes DROP COLUMN opening")
    with Store(path, readonly=True) as store:
        assert [each.opening for each in store.outcomes()] == [None] * 3
    with Store(path) as store:
        store.add(episode(3))
    with Store(path, readonly=True) as store:
        assert [each.opening for each in store.outcomes()] == [None] * 3 + [opening(episode(3).messages)]
        assert len(list(store.episodes())) == 4


def test_a_failure_that_cannot_be_read_is_told_as_a_corrupt_file(tmp_path):
    path = filled(tmp_path / "run.sqlite", 2)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE episodes SET failure='{' WHERE attempt=1")
    with Store(path, readonly=True) as store, pytest.raises(StoreError, match=r"the record of .* cannot be read"):
        store.outcomes()


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_is_not_stored(run_path, reward):
    with Store(run_path) as store:
        with pytest.raises(StoreError, match=f"has reward {reward}; a reward is a finite number"):
            store.add(episode(0, reward=reward))
        assert store.outcomes() == []


@pytest.mark.parametrize("reward", ["NULL", "'much'", "9e999"])
def test_a_stored_reward_that_is_no_number_is_told_as_a_corrupt_record(run_path, reward):
    with sqlite3.connect(filled(run_path, 2)) as db:
        db.execute(f"UPDATE episodes SET reward={reward} WHERE attempt=1")
    with Store(run_path, readonly=True) as store:
        for read in (store.outcomes, lambda: list(store.episodes())):
            with pytest.raises(
                StoreError, match=r"is corrupt: the record of \('train', 0, 'train:a', 1\) .* reward is"
            ):
                read()


def test_a_reader_leaves_a_closed_run_as_it_was(run_path):
    before = filled(run_path, 3).read_bytes()
    with Store(run_path, readonly=True) as store:
        assert len(list(store.episodes())) == 3
        with pytest.raises(StoreError, match="readonly"):
            store.add(episode(3))
    assert [path.name for path in run_path.parent.iterdir()] == [run_path.name]
    assert run_path.read_bytes() == before


def test_a_reader_that_ends_first_takes_nothing_from_a_run_that_began_meanwhile(run_path):
    reader = Store(filled(run_path, 3), readonly=True)
    with Store(run_path) as writer:
        writer.add(episode(3))
        assert len(reader.outcomes()) == 4
        reader.close()
        writer.add(episode(4))
        assert attempts(run_path) == [0, 1, 2, 3, 4]
