"""The record of tokens: what it refuses, what is derived from it, and that it survives the disk bit for bit."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import Failure, FailureKind, LedgerError
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn
from agentgym.rollout.store import Store

OBSERVED = Segment([5, 6, 7], Source.OBSERVED, 0)


def sampled(ids: Any, turn: int = 0, version: int = 0, **more: Any) -> Segment:
    return Segment(ids, Source.SAMPLED, turn, np.full(len(ids), -0.5), version, **more)


def episode(ledger: Ledger | None, attempt: int = 0, **more: Any) -> Episode:
    fields: dict[str, Any] = {
        "run": "train", "update": 3, "task_id": "train:a", "attempt": attempt, "seed": 2**62, "split": "train",
        "group": 0, "env_id": "a/B-v0", "env_version": "v0", "messages": (), "turns": (), "reward": 0.1,
        "reward_parts": {}, "terminated": True, "truncated": False, "stop_reason": StopReason.ANSWERED,
        "ledger": ledger,
    }  # fmt: skip
    return Episode(**fields | more)


# -- what is refused at birth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logprobs", "version", "fault"),
    [
        (None, 0, "without log-probs or version"),
        ([-0.1, -0.2], None, "without log-probs or version"),
        ([-0.1, float("nan")], 0, "NaN or above 0"),
        ([-0.1, 0.01], 0, "NaN or above 0"),
        ([-0.1, float("inf")], 0, "NaN or above 0"),
        ([-0.1], 0, "but 1 log-probs"),
        ([-0.1, -0.2, -0.3], 0, "but 3 log-probs"),
        ([[-0.1, -0.2]], 0, "but 2 log-probs"),
    ],
)
def test_trap_15_a_sampled_token_without_its_own_probability_is_refused(logprobs, version, fault):
    with pytest.raises(LedgerError, match=f"turn 4: 2 sampled ids .*{fault}"):
        Segment([8, 9], Source.SAMPLED, 4, logprobs, version)


@pytest.mark.parametrize("source", [Source.OBSERVED, Source.WRITTEN])
@pytest.mark.parametrize("given", [{"logprobs": [-0.1, -0.2]}, {"version": 0}])
def test_nobody_sampled_what_was_observed_or_written(source, given):
    with pytest.raises(LedgerError, match=f"turn 1: 2 {source} ids with log-probs or a version"):
        Segment([8, 9], source, 1, **given)


def test_ids_that_index_no_vocabulary_are_refused():
    with pytest.raises(LedgerError, match="turn 2: 3 observed ids hold the negative id -1"):
        Segment([5, -1, 6], Source.OBSERVED, 2)
    with pytest.raises(LedgerError, match=r"turn 2: ids have shape \(1, 2\)"):
        Segment([[5, 6]], Source.OBSERVED, 2)


def test_turns_and_versions_never_go_backwards():
    ledger = Ledger([Segment([1], Source.OBSERVED, 0), sampled([2], 2, version=5), Segment([3], Source.OBSERVED, 2)])
    with pytest.raises(LedgerError, match="turn 1 after turn 2"):
        ledger.append(Segment([4], Source.OBSERVED, 1))
    with pytest.raises(LedgerError, match="version 4 after 5"):
        ledger.append(sampled([4], 3, version=4))
    assert len(ledger) == 3  # a refused segment leaves nothing behind
    ledger.append(sampled([4], 3, version=5))


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="guessed"):
        Segment([1], "guessed", 0)  # type: ignore[arg-type]


def test_a_record_cannot_be_changed_by_anybody():
    mine = np.array([5, 6], np.int32)
    segment = Segment(mine, Source.SAMPLED, 0, [-1.0, -2.0], 0)
    mine[0] = 99
    assert segment.ids.tolist() == [5, 6]
    for array in (segment.ids, segment.logprobs):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        segment.turn = 1  # type: ignore[misc]


# -- what is derived --------------------------------------------------------------------------------------------------


def test_masks_turns_and_versions_are_read_off_the_segments():
    ledger = Ledger(
        [OBSERVED, sampled([8, 9], 0, 1), Segment([5], Source.OBSERVED, 1), Segment([6, 6], Source.WRITTEN, 1)]
    )
    (row,) = ledger.rows()
    assert row.ids.tolist() == [5, 6, 7, 8, 9, 5, 6, 6]
    assert row.sampled.tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert row.written.tolist() == [False] * 6 + [True] * 2
    assert row.logprobs.tolist() == [0, 0, 0, -0.5, -0.5, 0, 0, 0]
    assert row.turns.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert row.versions.tolist() == [-1, -1, -1, 1, 1, -1, -1, -1]
    assert (ledger.num_sampled, ledger.num_tokens, ledger.num_turns, len(row)) == (2, 8, 2, 8)


def test_trap_31_a_fork_observes_what_was_sampled_before_it():
    again = Segment([5, 6, 7, 8, 9, 4], Source.OBSERVED, 1, forks=True)
    ledger = Ledger([OBSERVED, sampled([8, 9]), again, sampled([3, 2, 1], 1)])
    first, second = ledger.rows()
    assert (first.ids.tolist(), second.ids.tolist()) == ([5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 4, 3, 2, 1])
    assert first.sampled.sum() + second.sampled.sum() == ledger.num_sampled == 5
    assert second.turns.tolist() == [1] * 9


def test_equal_means_equal_in_every_bit():
    def made(logprob: float = -0.5, **more: Any) -> Ledger:
        return Ledger(
            [OBSERVED, Segment([8], Source.SAMPLED, 0, [logprob], 0), Segment([9], Source.OBSERVED, 1, **more)]
        )

    assert made() == made()
    assert made() != made(np.nextafter(np.float32(-0.5), np.float32(0)))
    assert made() != made(forks=True)
    assert made() != "a ledger"
    with pytest.raises(TypeError, match="unhashable"):
        hash(made())


@pytest.mark.parametrize("reason", list(StopReason))
def test_trap_43_a_limit_truncates_and_an_end_does_not(reason):
    limits = {"max_turns", "max_tokens", "max_time", "context", "cancelled"}
    assert reason.is_limit == (reason in limits)


def test_trap_40_only_broken_data_and_broken_infrastructure_leave_a_denominator():
    def counts(kind: FailureKind | None) -> bool:
        return episode(None, failure=None if kind is None else Failure(kind, "Error", "why")).counts

    assert counts(None)
    assert counts(FailureKind.POLICY)
    assert not counts(FailureKind.TASK)
    assert not counts(FailureKind.INFRASTRUCTURE)


def test_success_is_full_reward_and_never_a_failures():
    assert episode(None, reward=1.0).success
    assert episode(None, reward=1 - 1e-9).success
    assert not episode(None, reward=0.999).success
    assert not episode(None, reward=1.0, failure=Failure(FailureKind.POLICY, "Error", "why")).success


# -- through the disk -------------------------------------------------------------------------------------------------

json_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | json_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def ledgers(draw: Any) -> Ledger:
    ledger, turn, version = Ledger(), 0, 0
    for _ in range(draw(st.integers(0, 6))):
        turn += draw(st.integers(0, 2))
        version += draw(st.integers(0, 1))
        ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=12))
        source = draw(st.sampled_from(Source))
        logprobs = (
            [draw(st.floats(max_value=0, allow_infinity=False, width=32)) for _ in ids]
            if source is Source.SAMPLED
            else None
        )
        ledger.append(
            Segment(ids, source, turn, logprobs, version if source is Source.SAMPLED else None, draw(st.booleans()))
        )
    return ledger


@settings(max_examples=80, deadline=None)
@given(
    ledger=st.none() | ledgers(),
    reward=st.floats(allow_nan=False, allow_infinity=False),
    texts=st.lists(json_texts, max_size=3),
    final=json_values,
    keys=st.lists(st.none() | json_texts, max_size=3),
    failure=st.none() | st.builds(Failure, st.sampled_from(FailureKind), json_texts, json_texts),
    reason=st.sampled_from(StopReason),
)
def test_an_episode_comes_back_from_the_store_bit_for_bit(
    tmp_path_factory, ledger, reward, texts, final, keys, failure, reason
):
    made = episode(
        ledger,
        messages=tuple({"role": "user", "content": text} for text in texts),
        turns=tuple(Turn(i / 3, key, 0.1 * i, 1e-9) for i, key in enumerate(keys)),
        reward=reward,
        reward_parts={"part": reward},
        final=final,
        grants={"net": final},
        metadata={"horizon": 3, "more": final},
        failure=failure,
        stop_reason=reason,
        truncated=reason.is_limit,
        terminated=not reason.is_limit,
    )
    path = tmp_path_factory.mktemp("store") / "run.sqlite"
    with Store(path) as store:
        store.add(made)
    with Store(path, readonly=True) as store:
        (back,) = store.episodes()
    assert back == made
    if ledger is not None:
        assert back.ledger.fingerprint() == ledger.fingerprint()
        for ours, theirs in zip(ledger, back.ledger, strict=True):
            assert not theirs.ids.flags.writeable
            assert (theirs.ids.dtype, ours.turn) == (np.int32, theirs.turn)
