"""Recorded runs in other people's formats, and back: OpenAI chat messages (JSON lines), ATIF (JSON lines), Parquet.

Owns what a line is. What a format has no place for lies beside it under "agentgym", so that an exported episode is read
back as it was, tokens included, and exported again gives the same bytes. A line from elsewhere, without that part,
becomes an episode whose assistant text is *written*: nobody here sampled it, and it has no ledger until a tokenizer
makes one (policies/transcript.py). ATIF's own shape is atif.py's."""

from __future__ import annotations

import base64
import codecs
import gzip
import importlib.metadata
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agentgym.errors import ConfigError, Failure, FailureKind, TaskError, nearest
from agentgym.ledger import Episode, StopReason, Turn
from agentgym.messages import JSON, Message, ToolCall, assistant, clean, raw_call
from agentgym.plugins import function_at
from agentgym.rollout import atif
from agentgym.rollout.store import packed, unpacked
from agentgym.spaces import as_message

Line = dict[str, Any]
Reader = Callable[[Path, list[str] | None], Iterable[Episode]]  # of somebody's own files; the list as in `read`
READERS = "agentgym.readers"  # entry-point group: format name -> "module:function", a Reader
# of a line that is no episode
FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, zlib.error, ConfigError)
OURS = "agentgym"
OWN = ("finish_reason", "num_tokens", "prompt_tokens")  # of a message, that OpenAI's keys cannot say
ROLES = {"developer": "system", "function": "tool"}  # older and newer names of the same


# -- an episode as one line of OpenAI's chat format ----------------------------------------------------------------


def to_line(episode: Episode) -> Line:
    """`{"messages", "tools", "reward", "agentgym"}`: the conversation as everybody reads it, and the rest of it."""
    e = episode
    rest = {
        "run": e.run, "update": e.update, "task_id": e.task_id, "attempt": e.attempt, "seed": e.seed, "split": e.split,
        "group": e.group, "env_id": e.env_id, "env_version": e.env_version,
        "turns": [[t.reward, t.state_key, t.policy_s, t.env_s] for t in e.turns], "reward_parts": dict(e.reward_parts),
        "terminated": e.terminated, "truncated": e.truncated, "stop_reason": str(e.stop_reason),
        "failure": None if e.failure is None else asdict(e.failure), "final": e.final, "grants": dict(e.grants),
        "metadata": dict(e.metadata), "messages": {str(i): own for i, m in enumerate(e.messages) if (own := _own(m))},
        "ledger": None if e.ledger is None else base64.b64encode(packed(e.ledger)).decode(),
    }  # fmt: skip
    line: Line = {"messages": [_shown(m) for m in e.messages]}
    if e.tools:
        line["tools"] = [dict(tool) for tool in e.tools]
    return {**line, "reward": e.reward, OURS: rest}


def from_line(line: Mapping[str, Any], index: int) -> Episode:
    """The episode of a line, ours or anybody's with `messages`; `index` numbers those that have no task id.
    Raises what indexing raises where it is none (KeyError, TypeError, ValueError, …), and ConfigError."""
    rest = _Rest(line.get(OURS) or {})
    own = rest("messages", dict, {})
    messages = tuple(_message(m, own.get(str(i), {})) for i, m in enumerate(line["messages"]))
    replies = sum(m["role"] == "assistant" for m in messages)
    reward = _finite(line.get("reward") or 0.0)
    task_id = clean(str(rest("task_id", str, "") or line.get("task_id") or line.get("id") or f"imported:{index}"))
    blame = rest("failure", dict | None, None)
    packed_ledger = rest("ledger", str | None, None)
    turns = tuple(_turn(*turn) for turn in rest("turns", list, ())) if "turns" in rest.values else None
    return Episode(
        run=rest("run", str, "imported"), update=rest.count("update", 0), task_id=task_id,
        attempt=rest.count("attempt", 0), seed=rest.count("seed", 0), group=rest.count("group", index),
        split=rest("split", str, task_id.partition(":")[0]), env_id=rest("env_id", str, ""),
        env_version=rest("env_version", str, ""), messages=messages, reward=reward,
        turns=_turns(replies, reward) if turns is None else turns,
        reward_parts={clean(str(k)): _finite(v) for k, v in rest("reward_parts", dict, {}).items()},
        terminated=rest("terminated", bool, True), truncated=rest("truncated", bool, False),
        stop_reason=StopReason(rest("stop_reason", str, StopReason.ENDED)),
        failure=None if blame is None else Failure(FailureKind(blame["kind"]), blame["cause"], blame["message"]),
        ledger=unpacked(base64.b64decode(packed_ledger)) if packed_ledger else None, final=rest.values.get("final"),
        grants=rest("grants", dict, {}), metadata=rest("metadata", dict, {}), tools=_tools(line.get("tools") or ()),
    )  # fmt: skip


class _Rest:
    """Our own part of a line, whose values are taken by name and type. Raises TypeError and ValueError."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __call__(self, name: str, kind: Any, default: Any) -> Any:
        value = self.values.get(name, default)
        if name in self.values and not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r:.40}")
        return clean(value) if isinstance(value, str) else value

    def count(self, name: str, default: int) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise ValueError(f"{name} is {value!r:.40}; it is a whole number of at least 0")
        return value


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r:.40} is no finite number")
    return number


def _turn(reward: Any, state_key: str | None, policy_s: Any, env_s: Any) -> Turn:
    if not isinstance(state_key, str | None):
        raise TypeError(f"a turn's state_key is {state_key!r:.40}")
    return Turn(_finite(reward), state_key, _finite(policy_s), _finite(env_s))


def _tools(given: Any) -> tuple[Mapping[str, JSON], ...]:
    for tool in given:
        if not isinstance(tool["function"]["name"], str):
            raise TypeError(f"a tool is {tool!r:.40}")
    return tuple(given)


def _turns(count: int, reward: float) -> tuple[Turn, ...]:
    return (*(Turn(0.0) for _ in range(count - 1)), Turn(reward)) if count else ()


def _shown(message: Message) -> Line:
    """A message in OpenAI's keys and no others."""
    line: Line = {"role": message["role"], "content": message["content"]}
    if "reasoning" in message:
        line["reasoning_content"] = message["reasoning"]
    if calls := message.get("tool_calls"):
        line["tool_calls"] = [{"id": c["id"], "type": "function", "function": dict(c["function"])} for c in calls]
    return line | {key: message[key] for key in ("tool_call_id", "name") if key in message}  # type: ignore[literal-required]


def _own(message: Message) -> dict[str, JSON]:
    """What of a message OpenAI's keys cannot say."""
    own: dict[str, JSON] = {key: message[key] for key in OWN if key in message}  # type: ignore[literal-required]
    if errors := {str(i): c["error"] for i, c in enumerate(message.get("tool_calls") or ()) if "error" in c}:
        own["errors"] = errors
    return own


def _message(line: Mapping[str, Any], own: Mapping[str, Any]) -> Message:
    """A message of anybody's line. Raises what indexing raises, ValueError for a role that there is not, and
    ConfigError for a count that is none."""
    role = ROLES.get(line["role"], line["role"])
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(f"role {role!r:.40} is none of system, user, assistant, tool")
    content = line.get("content") or ""
    if isinstance(content, list):  # parts; only text is ours
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TypeError(f"the content of a {role} message is {type(content).__name__}, not text")
    calls: list[Any] = list(line.get("tool_calls") or ())
    if old := line.get("function_call"):
        calls.append({"id": "call_0", "function": old})
    made = assistant(clean(content), *(_call(c, i, own.get("errors", {}).get(str(i))) for i, c in enumerate(calls)))
    made["role"] = role
    if isinstance(thought := line.get("reasoning_content", line.get("reasoning")), str):
        made["reasoning"] = clean(thought)
    for key in ("tool_call_id", "name"):
        if line.get(key) is not None:
            made[key] = clean(str(line[key]))
    checked: Any = as_message({key: own[key] for key in OWN if key in own})
    for key in OWN:
        if key in checked:
            made[key] = checked[key]
    return made


def _call(line: Mapping[str, Any], index: int, error: str | None) -> ToolCall:
    function = line["function"]
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments)
    return raw_call(clean(str(function["name"])), clean(text), clean(str(line.get("id", f"call_{index}"))), error)


# -- files ---------------------------------------------------------------------------------------------------------


def write(path: Path, episodes: Iterable[Episode], form: str) -> int:
    """Write episodes to a file, which is there when it is whole, and count them. Raises ConfigError for no format."""
    if form not in FORMATS:
        raise ConfigError(f"no format {form!r}{nearest(form, FORMATS)} There are {', '.join(FORMATS)}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is no file that could be replaced; give another name")
    aside = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        count = _write_parquet(aside, episodes) if form == "parquet" else _write_lines(aside, episodes, form)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def read(path: Path, form: str | None = None, left_out: list[str] | None = None) -> Iterator[Episode]:
    """The episodes of a file: in a format of ours (told by its content where none is given), or by a reader's name or
    `module:function`. A line that is no episode is named in `left_out`; without it, as for a file that cannot be read,
    TaskError is raised; ConfigError for no file and no format."""
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    if form is not None and form not in FORMATS:
        yield from _reader(form)(path, left_out)
        return
    attempts: Counter[str] = Counter()
    for number, line in enumerate(_parquet_lines(path) if _is_parquet(path) else _json_lines(path), start=1):
        try:
            line = _decoded(line)
            line = atif.to_line(line) if "steps" in line else line
            episode = from_line(line, number - 1)
        except FAULTS as error:
            fault = f"{path}, record {number}: no episode ({type(error).__name__}: {error})"
            if left_out is None:
                raise TaskError(fault) from error
            left_out.append(fault)
        else:
            if not line.get(OURS):  # who else counts attempts?
                attempts[episode.task_id] += 1
                episode = replace(episode, attempt=attempts[episode.task_id] - 1)
            yield episode


def _decoded(line: Any) -> Line:
    """The object of a line, or of a Parquet row, whose tools and own part are JSON text. Raises as `from_line`."""
    if isinstance(line, bytes):
        line = json.loads(line)
    if not isinstance(line, dict):
        raise TypeError(f"it is {line!r:.40}; give an object")
    packed_keys = [key for key in ("tools", OURS) if isinstance(line.get(key), str)]
    return {**line, **{key: json.loads(line[key]) for key in packed_keys}}


def _write_lines(path: Path, episodes: Iterable[Episode], form: str) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, episode in enumerate(episodes, start=1):  # noqa: B007
            line = to_line(episode)
            line = atif.from_line(line, episode) if form == "atif" else line
            file.write(_spelt(line) + "\n")
    return count


def _spelt(line: Line) -> str:
    """In one line; a lone surrogate, which UTF-8 has not, as its escape."""
    text = json.dumps(line, ensure_ascii=False)
    return text if clean(text) == text else json.dumps(line)


def _json_lines(path: Path) -> Iterator[bytes | Line]:
    """Lines of a file, or the objects of one JSON text; gzipped or not."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise TaskError(f"{path}: cannot be read ({error})") from error
    lines = [line for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    if lines and (lines[0].lstrip()[:1] == b"[" or lines[0].strip() == b"{"):
        try:
            whole = json.loads(data.removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError):
            return iter(lines)  # each is named for what it is
        return iter(whole if isinstance(whole, list) else [whole])
    return iter(lines)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet_schema() -> Any:
    import pyarrow as pa  # noqa: PLC0415 - optional, 200 ms

    text, function = pa.string(), pa.struct([("name", pa.string()), ("arguments", pa.string())])
    call = pa.struct([("id", text), ("type", text), ("function", function)])
    message = [("role", text), ("content", text), ("reasoning_content", text), ("tool_calls", pa.list_(call))]
    message = pa.struct([*message, ("tool_call_id", text), ("name", text)])
    told = [("env_id", text), ("run", text), ("task_id", text), ("attempt", pa.int64()), ("stop_reason", text)]
    return pa.schema([("messages", pa.list_(message)), ("tools", text), ("reward", pa.float64()), *told, (OURS, text)])


def _write_parquet(path: Path, episodes: Iterable[Episode]) -> int:
    """A row per episode; tools, and what only we know, as JSON text, since their shapes differ from row to row."""
    from pyarrow import Table, parquet  # noqa: PLC0415 - optional, 200 ms

    schema, count = _parquet_schema(), 0
    with parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(episodes, 256):
            lines = [to_line(episode) for episode in batch]
            rows = [
                {"messages": line["messages"], "reward": line["reward"], OURS: json.dumps(line[OURS]),
                 "tools": json.dumps(line["tools"]) if "tools" in line else None,
                 **{name: line[OURS][name] for name in ("env_id", "run", "task_id", "attempt", "stop_reason")}}
                for line in lines
            ]  # fmt: skip
            writer.write_table(Table.from_pylist(rows, schema=schema))
            count += len(batch)
    return count


def _parquet_lines(path: Path) -> Iterator[Line]:
    from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415 - optional, 200 ms

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(256):
                yield from batch.to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise TaskError(f"{path}: no Parquet ({error})") from error


def _batches(episodes: Iterable[Episode], size: int) -> Iterator[Sequence[Episode]]:
    batch: list[Episode] = []
    for episode in episodes:
        batch.append(episode)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _reader(name: str) -> Reader:
    """A reader by name, or by `module:function`. Raises ConfigError."""
    points = {point.name: point for point in importlib.metadata.entry_points(group=READERS)}
    if name in points:
        return points[name].load()
    if ":" not in name:
        known = (*FORMATS, *points)
        raise ConfigError(f"no format {name!r}{nearest(name, known)} There are {', '.join(known)}, or module:function")
    return function_at(name)


FORMATS = {
    "openai": "JSON lines of OpenAI chat messages and tool calls",
    "atif": "JSON lines of the Agent Trajectory Interchange Format",
    "parquet": "Parquet, for pandas, DuckDB and Hugging Face datasets",
}
