"""Where episodes are kept: one SQLite file per run, readable while the run writes it.

Owns the file format. One transaction per finished episode, so that a killed run loses none; the key of an episode is
(run, update, task, attempt), so that resuming is a query and no attempt is ever stored twice."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from agentgym.errors import Failure, FailureKind, StoreError
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn
from agentgym.messages import JSON, Message

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS episodes (
    run TEXT, update_number INTEGER, task_id TEXT, attempt INTEGER,
    seed INTEGER, split TEXT, group_number INTEGER, env_id TEXT, env_version TEXT,
    reward REAL, terminated INTEGER, truncated INTEGER, stop_reason TEXT, failure TEXT, opening TEXT,
    record BLOB, ledger BLOB, replaceable INTEGER DEFAULT 0,
    PRIMARY KEY (run, update_number, task_id, attempt)
);
CREATE TABLE IF NOT EXISTS tasks (task_id TEXT PRIMARY KEY, record BLOB);
"""
OFFERS = "CREATE TABLE IF NOT EXISTS offers (offer TEXT PRIMARY KEY, record BLOB);"  # of tools, once per content
COLUMNS = (
    "run, update_number, task_id, attempt, seed, split, group_number, env_id, env_version, reward, terminated, "
    "truncated, stop_reason, failure, record, ledger"
)
LIGHT = "run, update_number, task_id, attempt, seed, split, env_id, env_version, reward, stop_reason, failure"
INDEX = f"CREATE INDEX light ON episodes ({LIGHT}, opening);"  # what `outcomes` reads, however long the episodes are
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "lustre", "beegfs", "afs"}


class Result(NamedTuple):
    """What the columns say of a stored episode, without its record: enough for a rate, quick to read by the 100,000."""

    run: str
    update: int
    task_id: str
    attempt: int
    seed: int
    split: str
    env_id: str
    env_version: str
    reward: float
    stop_reason: str
    failure: FailureKind | None
    opening: str | None  # names what the policy was first told; None in a file that was written before that was kept

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self[:4]

    @property
    def success(self) -> bool:
        """As `Episode.success`."""
        return self.failure is None and self.reward >= 1 - 1e-6

    @property
    def counts(self) -> bool:
        """As `Episode.counts`."""
        return self.failure is None or self.failure == FailureKind.POLICY


class Store:
    """One run's episodes. Only the driver's process writes; anybody may read."""

    def __init__(self, path: str | Path, *, readonly: bool = False) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._readonly = readonly
        if readonly and not self.path.is_file():
            raise StoreError(f"no run at {self.path}: the file does not exist. `ls runs/` shows the runs there are.")
        if not readonly:
            _refuse_network_disk(self.path)
        with _told(self.path):
            # reading makes files of a log beside a closed run: only who may write takes them away again
            is_closed = not self.path.with_name(f"{self.path.name}-wal").exists()
            self._db = self._connect("mode=rwc" if not readonly else "mode=rw" if is_closed else "mode=ro")
            self._db.execute(f"PRAGMA query_only={readonly:d}")
            if readonly and not self._can_lock():
                self._db.close()
                self._db = self._connect("mode=ro&immutable=1")
            if not readonly:
                self._create()
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            self._db.close()
            raise StoreError(f"{self.path} has schema {version}; this agentgym reads {SCHEMA_VERSION}. Use its own.")

    def _connect(self, query: str) -> sqlite3.Connection:
        uri = f"{self.path.resolve().as_uri()}?{query}"
        return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=30)

    def _can_lock(self) -> bool:
        """Whether a lock can be laid beside the file. Where it cannot, nobody writes: a closed run needs none."""
        try:
            self._db.execute("PRAGMA user_version")
        except sqlite3.OperationalError as error:
            is_barred = error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
            if not is_barred or self.path.with_name(f"{self.path.name}-wal").exists():
                raise  # a moment's lock, or a run that was not closed: the file alone is not all of it
            return False
        return True

    def _create(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        is_new = version == 0 and not self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if not is_new and version != SCHEMA_VERSION:
            return  # not ours: refused, and not touched
        mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(f"{self.path}: this disk cannot do write-ahead logging. Give --output on a local disk.")
        self._db.execute("PRAGMA synchronous=NORMAL")
        if is_new:
            self._db.executescript(f"BEGIN; {SCHEMA} {INDEX} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        self._db.execute(OFFERS)
        if not self._is_indexed():  # it is from before openings were kept
            self._db.executescript(f"BEGIN; ALTER TABLE episodes ADD COLUMN opening TEXT; {INDEX} COMMIT;")

    def _is_indexed(self) -> bool:
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name='light'").fetchone() is not None

    def add(self, episode: Episode, task: Mapping[str, JSON] | None = None) -> None:
        """Write one finished episode (and the task it was about). Raises StoreError where its reward is no finite
        number, or that attempt is already finished, unless `reopen` made it replaceable."""
        if not math.isfinite(episode.reward):
            raise StoreError(f"attempt {episode.key} has reward {episode.reward}; a reward is a finite number")
        offer = json.dumps([dict(tool) for tool in episode.tools]).encode() if episode.tools else b""
        name = hashlib.sha256(offer).hexdigest()[:16] if offer else ""
        values = (*_to_row(episode, name), opening(episode.messages))
        marks = ", ".join("?" * len(values))
        with self._lock, _told(self.path), self._db:
            self._db.execute("BEGIN")
            if task is not None:
                record = zlib.compress(json.dumps(task).encode(), 1)
                self._db.execute("INSERT OR IGNORE INTO tasks VALUES (?, ?)", (episode.task_id, record))
            if offer:
                self._db.execute("INSERT OR IGNORE INTO offers VALUES (?, ?)", (name, zlib.compress(offer, 1)))
            key = episode.key
            where = "run=? AND update_number=? AND task_id=? AND attempt=?"
            self._db.execute(f"DELETE FROM episodes WHERE {where} AND replaceable=1", key)
            try:
                self._db.execute(f"INSERT INTO episodes ({COLUMNS}, opening) VALUES ({marks})", values)
            except sqlite3.IntegrityError as error:
                raise StoreError(f"{self.path}: attempt {key} is already finished; an attempt counts once") from error

    def reopen(self, run: str, *, from_update: int) -> None:
        """A resumed run plays these updates again, whole: let each attempt be replaced by its replay."""
        with self._lock, _told(self.path):
            self._db.execute("UPDATE episodes SET replaceable=1 WHERE run=? AND update_number>=?", (run, from_update))

    def reopen_failed(self, run: str) -> None:
        """Let what infrastructure broke be played again: it told nothing of the policy."""
        where = "run=? AND json_extract(failure, '$.kind')=?"
        with self._lock, _told(self.path):
            self._db.execute(f"UPDATE episodes SET replaceable=1 WHERE {where}", (run, FailureKind.INFRASTRUCTURE))

    def episodes(
        self, *, run: str | None = None, update: int | None = None, task: str | None = None, attempt: int | None = None,
        limit: int | None = None,
    ) -> Iterator[Episode]:  # fmt: skip
        """Stored episodes in the order of their keys' arrival."""
        where, values = _where(run=run, update_number=update, task_id=task, attempt=attempt)
        query = f"SELECT {COLUMNS} FROM episodes{where} ORDER BY rowid"
        query += f" LIMIT {int(limit)}" if limit is not None else ""
        with _told(self.path):
            rows = self._db.execute(query, values).fetchall()
            offers = self._offers()
        for row in rows:
            try:
                yield _from_row(row, offers)
            except (zlib.error, ValueError, KeyError, TypeError) as error:
                raise self._unreadable(row, error) from error

    def outcomes(self, *, run: str | None = None) -> list[Result]:
        """What the columns say of the stored episodes, in the order of their keys' arrival: no record is unpacked."""
        where, values = _where(run=run)
        with _told(self.path):
            source = "opening FROM episodes INDEXED BY light" if self._is_indexed() else "NULL FROM episodes"
            rows = self._db.execute(f"SELECT {LIGHT}, {source}{where} ORDER BY rowid", values)
            return [Result._make(self._checked(row)) for row in rows]

    def _checked(self, row: tuple) -> tuple:
        try:
            _finite(row[8])
            return row if row[10] is None else (*row[:10], FailureKind(json.loads(row[10])["kind"]), row[11])
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable(row, error) from error

    def _unreadable(self, row: tuple, error: Exception) -> StoreError:
        return StoreError(f"{self.path} is corrupt: the record of {row[:4]} cannot be read ({error})")

    def tasks(self) -> dict[str, JSON]:
        """The tasks that stored episodes were about, by id."""
        with _told(self.path):
            rows = self._db.execute("SELECT task_id, record FROM tasks").fetchall()
            return {task_id: json.loads(zlib.decompress(record)) for task_id, record in rows}

    def _offers(self) -> dict[str, tuple[Mapping[str, JSON], ...]]:
        """The offers of tools, by name; none in a file that was written before they were kept."""
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name='offers'").fetchone():
            return {}
        rows = self._db.execute("SELECT offer, record FROM offers").fetchall()
        try:
            return {offer: tuple(json.loads(zlib.decompress(record))) for offer, record in rows}
        except (zlib.error, ValueError, TypeError) as error:
            raise StoreError(f"{self.path} is corrupt: what tools were on offer cannot be read ({error})") from error

    def keys(self, run: str) -> set[tuple[int, str, int]]:
        """(update, task_id, attempt) of every finished episode of a phase, those to be replaced left out."""
        query = "SELECT update_number, task_id, attempt FROM episodes WHERE run=? AND replaceable=0"
        with _told(self.path):
            return set(self._db.execute(query, (run,)))

    def runs(self) -> dict[str, int]:
        """Phase -> number of finished episodes."""
        with _told(self.path):
            return dict(self._db.execute("SELECT run, COUNT(*) FROM episodes GROUP BY run ORDER BY MIN(rowid)"))

    def close(self) -> None:
        """Fold the write-ahead log into the one file, which then copies alone."""
        with self._lock, _told(self.path):
            if not self._readonly:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns the disk's and SQLite's errors into one sentence with the path and the fix."""
    try:
        yield
    except sqlite3.OperationalError as error:
        told = f"{error}. Is the folder there, writable, and no other run using it?"
        if "full" in str(error):
            told = "the disk is full. Free some space and go on with --resume."
        raise StoreError(f"{path}: {told}") from error
    except (sqlite3.DatabaseError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        told = f"`sqlite3 {path.name} .recover` saves what can be read; or move it away and start anew."
        raise StoreError(f"{path} is corrupt: {error}. {told}") from error


def _refuse_network_disk(path: Path) -> None:
    folder = path.resolve().parent
    mounts = [p for p in psutil.disk_partitions(all=True) if folder.is_relative_to(p.mountpoint)]
    kind = max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else ""
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(f"{folder} is a network disk ({kind}), where SQLite loses writes. Give --output a local one.")


def _where(**wanted: str | int | None) -> tuple[str, list[str | int]]:
    """A WHERE clause, or nothing, for the columns that are given a value; and the values."""
    given = {column: value for column, value in wanted.items() if value is not None}
    return f" WHERE {' AND '.join(f'{column}=?' for column in given)}" if given else "", [*given.values()]


def opening(messages: Iterable[Message]) -> str:
    """A name for what a policy is told before it first speaks: of the content of those messages, and nothing else."""
    told = [dict(message) for message in takewhile(lambda message: message["role"] != "assistant", messages)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _to_row(episode: Episode, offer: str) -> tuple:
    e = episode
    record = {
        "messages": e.messages,
        "turns": [[t.reward, t.state_key, t.policy_s, t.env_s] for t in e.turns],
        "reward_parts": dict(e.reward_parts),
        "final": e.final,
        "grants": dict(e.grants),
        "metadata": dict(e.metadata),
        "offer": offer,
    }
    failure = None if e.failure is None else json.dumps(asdict(e.failure))
    ledger = None if e.ledger is None else packed(e.ledger)
    blob = zlib.compress(json.dumps(record).encode(), 1)
    placed = (e.run, e.update, e.task_id, e.attempt, e.seed, e.split, e.group, e.env_id, e.env_version)
    return (*placed, e.reward, e.terminated, e.truncated, str(e.stop_reason), failure, blob, ledger)


def _from_row(row: tuple, offers: Mapping[str, tuple[Mapping[str, JSON], ...]]) -> Episode:
    run, update, task_id, attempt, seed, split, group, env_id, env_version = row[:9]
    reward, terminated, truncated, stop_reason, failure, record, ledger = row[9:]
    rest = json.loads(zlib.decompress(record))
    blame = None if failure is None else json.loads(failure)
    return Episode(
        run=run, update=update, task_id=task_id, attempt=attempt, seed=seed, split=split, group=group,
        env_id=env_id, env_version=env_version, reward=_finite(reward), terminated=bool(terminated),
        truncated=bool(truncated), stop_reason=StopReason(stop_reason),
        failure=None if blame is None else Failure(FailureKind(blame["kind"]), blame["cause"], blame["message"]),
        ledger=None if ledger is None else unpacked(ledger),
        messages=tuple(rest["messages"]),
        turns=tuple(Turn(*turn) for turn in rest["turns"]),
        reward_parts=rest["reward_parts"], final=rest["final"], grants=rest["grants"], metadata=rest["metadata"],
        tools=offers[rest["offer"]] if rest.get("offer") else (),
    )  # fmt: skip


def _finite(reward: Any) -> float:
    if not (isinstance(reward, float) and math.isfinite(reward)):
        raise ValueError(f"its reward is {reward!r}")  # NULL is what SQLite makes of NaN
    return reward


def packed(ledger: Ledger) -> bytes:
    """A JSON line of segment headers, then all ids (int32), then all log-probs (float32), little-endian."""
    heads = [[str(s.source), s.turn, s.version, s.forks, len(s)] for s in ledger]
    ids = b"".join(s.ids.astype("<i4").tobytes() for s in ledger)
    logprobs = b"".join(s.logprobs.astype("<f4").tobytes() for s in ledger if s.logprobs is not None)
    return zlib.compress(json.dumps(heads).encode() + b"\n" + ids + logprobs, 1)


def unpacked(blob: bytes) -> Ledger:
    """The ledger of which `packed` made these bytes. Raises what reading them raises where they are none."""
    head, _, body = zlib.decompress(blob).partition(b"\n")
    heads = json.loads(head)
    total = sum(n for *_, n in heads)
    ids = np.frombuffer(body, "<i4", total)
    logprobs = np.frombuffer(body, "<f4", offset=4 * total)
    ledger, at, sampled = Ledger(), 0, 0
    for source, turn, version, forks, n in heads:
        own = None
        if source == Source.SAMPLED:
            own, sampled = logprobs[sampled : sampled + n], sampled + n
        ledger.append(Segment(ids[at : at + n], Source(source), turn, own, version, forks))
        at += n
    return ledger
