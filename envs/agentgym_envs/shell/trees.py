"""Small file trees and orders to change them: shell tasks without data, with dials for their length and difficulty.

Owns the generator. Every order is one sentence, one command that carries it out, and its effect on the tree in plain
Python, so that the expected files are computed without a shell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from agentgym import ConfigError, Task, TaskSet

Tree = dict[str, str]  # path -> content
LEVELS = ((3, 1), (5, 2), (8, 3), (14, 4))  # files at the start, kinds of orders in play (see _ORDERS)
FOLDERS = ("inbox", "archive", "notes", "reports", "drafts", "lists")
NAMES = ("apple", "birch", "cedar", "daisy", "ember", "fable", "grove", "hazel", "ivory", "jolly", "kayak", "lemon")
WORDS = ("red", "blue", "green", "amber", "white", "black", "rose", "teal", "gold", "grey")


@lru_cache
def trees(horizons: tuple[int, ...], difficulty: int) -> TaskSet:
    """The task set of one setting of the dials. Raises ConfigError for a level that is not there."""
    if not 0 <= difficulty < len(LEVELS):
        raise ConfigError(f"difficulty={difficulty}: Shell-v0 has the levels 0 to {len(LEVELS) - 1}")

    def make(rng: np.random.Generator, horizon: int) -> Task:
        return tree_task(rng, horizon, difficulty)

    return TaskSet.procedural(make, horizons=horizons)


def tree_task(rng: np.random.Generator, horizon: int, difficulty: int) -> Task:
    """A tree and `horizon` orders; the commands that carry them out are the gold."""
    num_files, num_kinds = LEVELS[difficulty]
    tree: Tree = {}
    while len(tree) < num_files:
        tree[_path(rng)] = _lines(rng)
    files = dict(tree)
    sentences, commands = [], []
    while len(commands) < horizon or tree == files:
        kinds = [order for group in _ORDERS[:num_kinds] for order in group]
        made = kinds[int(rng.integers(len(kinds)))](rng, tree)
        if made is not None:
            sentences.append(made[0])
            commands.append(made[1])
    orders = "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))
    return Task(
        prompt=f"Carry out these orders, one after the other, in the folder you are in:\n{orders}\n"
        "Then answer with the number of files that are there, and nothing else.",
        answer=dict(sorted(tree.items())),
        files=files,
        data={"commands": commands},
        metadata={"horizon": len(commands), "difficulty": difficulty},
    )


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _path(rng: np.random.Generator) -> str:
    return f"{_pick(rng, FOLDERS)}/{_pick(rng, NAMES)}{_pick(rng, ('.txt', '.log', '.md'))}"


def _lines(rng: np.random.Generator) -> str:
    return "".join(f"{_pick(rng, WORDS)} {int(rng.integers(100))}\n" for _ in range(int(rng.integers(2, 6))))


def _some(rng: np.random.Generator, tree: Tree) -> str | None:
    return _pick(rng, sorted(tree)) if tree else None


def _free(rng: np.random.Generator, tree: Tree) -> str | None:
    path = _path(rng)
    return None if path in tree else path


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _write(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path, text = _free(rng, tree), f"{_pick(rng, WORDS)} {int(rng.integers(100))}"
    if path is None:
        return None
    tree[path] = f"{text}\n"
    return f"Make the file {path} with the one line: {text}", f"mkdir -p {_folder(path)} && echo '{text}' > {path}"


def _delete(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path = _some(rng, tree)
    if path is None or len(tree) < 2:
        return None
    del tree[path]
    return f"Delete the file {path}", f"rm {path}"


def _append(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path, text = _some(rng, tree), _pick(rng, WORDS)
    if path is None:
        return None
    tree[path] += f"{text}\n"
    return f"Add a line to the end of {path}: {text}", f"echo '{text}' >> {path}"


def _move(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path, to = _some(rng, tree), _free(rng, tree)
    if path is None or to is None:
        return None
    tree[to] = tree.pop(path)
    return f"Move {path} to {to}", f"mkdir -p {_folder(to)} && mv {path} {to}"


def _copy(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path, to = _some(rng, tree), _free(rng, tree)
    if path is None or to is None:
        return None
    tree[to] = tree[path]
    return f"Copy {path} to {to}", f"mkdir -p {_folder(to)} && cp {path} {to}"


def _count(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path, to = _some(rng, tree), _free(rng, tree)
    if path is None or to is None:
        return None
    tree[to] = f"{len(tree[path].splitlines())}\n"
    return (
        f"Write the number of lines of {path}, and nothing else, to the file {to}",
        f"mkdir -p {_folder(to)} && wc -l < {path} > {to}",
    )


def _sort(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    path, to = _some(rng, tree), _free(rng, tree)
    if path is None or to is None:
        return None
    tree[to] = "".join(sorted(tree[path].splitlines(keepends=True)))
    return (
        f"Write the lines of {path}, sorted by their bytes, to the file {to}",
        f"mkdir -p {_folder(to)} && LC_ALL=C sort {path} > {to}",
    )


def _join(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    to, end = _free(rng, tree), _pick(rng, (".txt", ".log", ".md"))
    found = sorted(path for path in tree if path.endswith(end))
    if to is None or not found:
        return None
    tree[to] = "".join(tree[path] for path in found)
    return (
        f"Write all files that end in {end}, in the order of their paths, one after the other to the new file {to}",
        f"mkdir -p {_folder(to)} && find . -name '*{end}' | LC_ALL=C sort | xargs cat > /tmp/all && mv /tmp/all {to}",
    )


def _sweep(rng: np.random.Generator, tree: Tree) -> tuple[str, str] | None:
    word = _pick(rng, WORDS)
    found = [path for path in tree if word in tree[path]]
    if not found or len(found) == len(tree):
        return None
    for path in found:
        del tree[path]
    return f"Delete every file in which the word {word} stands", f"grep -rl {word} . | xargs rm"


_ORDERS = ((_write, _delete, _append), (_move, _copy), (_count, _sort), (_join, _sweep))
