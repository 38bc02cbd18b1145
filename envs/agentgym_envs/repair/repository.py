"""Records of real bugs (a repository's commit, tests that must turn to pass, tests that must stay passing) as tasks.

Owns the layout, and what of a git repository is taken: the files of one commit. History, tags and reflogs, in which the
repair may stand, never leave the machine that holds the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentgym import ConfigError, Task, TaskError, TaskSet, assistant, call
from agentgym_envs.files import find, read

NAMES = ("swe_records/instances.jsonl.gz", "swe_records/instances.jsonl")
TOTAL_S = 600.0
TOUCHED = re.compile(r"^diff --git a/(.*) b/(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Tree:
    """The files of a commit."""

    files: Mapping[str, bytes]
    links: Mapping[str, str]  # path -> where it points
    programs: tuple[str, ...]  # paths that may be executed


def load(data: str | None, repo: str | None) -> TaskSet:
    """The records whose repository is found: `repo` is one, or a folder that holds them by their names."""
    path = find(data, NAMES)
    if repo is None:
        raise ConfigError("no repository: give repo=PATH, a git repository or a folder that holds them by name")
    return _tasks(str(path.resolve()), path.stat().st_mtime, str(Path(repo).expanduser().resolve()))


@lru_cache
def _tasks(path: str, stamp: float, repo: str) -> TaskSet:
    made = []
    for place, record in read(Path(path)):
        try:
            where = _where(Path(repo), record["repo"], record["base_commit"])
            if where is not None:
                made.append(_task(record, where))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise TaskError(f"{place}: no record of a repository's bug ({type(error).__name__}: {error})") from error
    if not made:
        raise ConfigError(f"repo={repo}: no record of {path} has its base_commit there")
    return TaskSet({"test": made})


def _where(root: Path, name: str, commit: str) -> Path | None:
    """The repository that has the commit: the folder itself, or one in it called owner/name or name."""
    short = name.rpartition("/")[2]
    for place in (root, root / name, root / short, root / f"{short}.git"):
        if place.is_dir() and _git(place, "cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode == 0:
            return place
    return None


def _task(record: Mapping[str, Any], where: Path) -> Task:
    failing, passing = _list(record["FAIL_TO_PASS"]), _list(record["PASS_TO_PASS"])
    if not failing:
        raise ValueError("FAIL_TO_PASS is empty")
    story = record.get("problem_statement") or f"Some behaviour of {record['repo']} is wrong: it does not pass\n" + (
        "\n".join(f"- {test}" for test in failing)
    )
    return Task(
        prompt=f"The repository {record['repo']} lies in your folder. {story}\n\n"
        "Repair it there, and call `submit`. Tests that you do not have decide.",
        gold=(assistant("", call("apply", patch=record["patch"])), assistant("", call("submit"))),
        data={
            "layout": "repository",
            "repo": str(where),
            "commit": record["base_commit"],
            "test_patch": record["test_patch"],
            "run_files": list(record["run_files"]),
            "wanted": failing + passing,
            "kept": touched(record["test_patch"]),
            "total_s": TOTAL_S,
        },
        metadata={"horizon": 2, "instance_id": record["instance_id"]},
    )


def _list(value: str | Sequence[str]) -> list[str]:
    """A list, or the text of one."""
    return [str(item) for item in (ast.literal_eval(value) if isinstance(value, str) else value)]


def touched(patch: str) -> list[str]:
    """Paths that a diff names, before and after."""
    return sorted({path for pair in TOUCHED.findall(patch) for path in pair})


@lru_cache(maxsize=8)
def tree(repo: str, commit: str) -> Tree:
    """The files of a commit. Raises TaskError where the repository does not have it."""
    listed = _git(Path(repo), "ls-tree", "-r", "-z", commit, check=False)
    if listed.returncode:
        raise TaskError(f"{repo} has no commit {commit}: {listed.stderr.decode(errors='replace').strip()}")
    rows = [row.partition("\t") for row in listed.stdout.decode("utf-8", "surrogateescape").split("\0") if row]
    entries = [(meta.split(), path) for meta, _, path in rows]
    blobs = [(mode, digest, path) for (mode, kind, digest), path in entries if kind == "blob"]
    asked = "".join(f"{digest}\n" for _, digest, _ in blobs).encode()
    data = _git(Path(repo), "cat-file", "--batch", given=asked).stdout
    files, links, programs, at = {}, {}, [], 0
    for mode, _, path in blobs:
        end = data.index(b"\n", at)
        size = int(data[at:end].split()[2])
        content, at = data[end + 1 : end + 1 + size], end + size + 2
        if mode == "120000":
            links[path] = content.decode("utf-8", "surrogateescape")
            continue
        files[path] = content
        if mode == "100755":
            programs.append(path)
    return Tree(files, links, tuple(programs))


def _git(repo: Path, *arguments: str, given: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """git on the user's repository: reads, and changes nothing."""
    command = ["git", "-c", f"safe.directory={repo}", "-c", "safe.directory=*", "-C", str(repo), *arguments]
    try:
        return subprocess.run(command, input=given, capture_output=True, check=check)
    except FileNotFoundError:
        raise ConfigError("git is not installed, and repositories are read by it; apt-get install git") from None
