"""Limits that are kept before they are reached, whatever the episodes turn out to cost."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from agentgym import AgentEnv, Rubric, Task, TaskSet
from agentgym.errors import ConfigError
from agentgym.evaluation.budget import AROUND, PILOT, Budget, Meter
from agentgym.evaluation.figures import Tally
from agentgym.evaluation.run import Evaluation, evaluate
from agentgym.ledger import NONE, Episode, Tokens
from agentgym.loop import run_sync
from agentgym.messages import Message, assistant, call, user
from agentgym.policies.builtin import Scripted
from agentgym.policies.http import ChatPolicy, from_function
from agentgym.rollout.store import Store

REPLY = 50  # most tokens of a reply


class Talk(AgentEnv):
    """Talks on until it is told to stop."""

    tasks = TaskSet({"test": [Task(f"Talk about {i}.") for i in range(120)]})
    rubric = Rubric(talked=lambda outcome: 1.0)
    blocking = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"split": "test"} | kwargs)

    def respond(self, message: Message) -> str | None:
        return None if message["content"] == "stop" else "go on"


class Speaker:
    """Talks for as many turns as the task's number says, at random lengths, and knows what it has cost."""

    def __init__(self, turns: Any, delay_s: float = 0.0) -> None:
        self.turns, self.delay_s = turns, delay_s
        self.rng = np.random.default_rng(0)
        self.spent = Tokens()

    async def __call__(self, messages: list[Message], seed: int) -> dict[str, Any]:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        else:
            await asyncio.sleep(0)
        number = int(messages[0]["content"].removeprefix("Talk about ").rstrip("."))
        said = sum(m["role"] == "assistant" for m in messages) + 1
        read = sum(len(m["content"].encode()) for m in messages) // 3 + 4 * len(messages)
        wrote = int(self.rng.integers(1, REPLY + 1))
        self.spent += Tokens(read, wrote)
        content = "stop" if said >= self.turns(number) else "x" * 2 * wrote
        return {"content": content, "num_tokens": wrote, "prompt_tokens": read}


def play(name: str, speaker: Any, budget: Budget, **options: Any) -> Evaluation:
    policy = ChatPolicy(from_function(speaker.__call__)) if isinstance(speaker, Speaker) else speaker
    spent = options.pop("spent", Tokens())
    return run_sync(
        evaluate(
            name, policy, run="x", steady=False, meter=options.pop("meter", None) or Meter(budget, REPLY, spent),
            **{"store": None, "limit": 120, "concurrency": 16} | options,
        )
    )  # fmt: skip


def test_money_is_counted_by_the_million():
    budget = Budget(price_in=2.0, price_out=10.0, max_cost=1.0)
    assert budget.cost(Tokens(300_000, 40_000)) == pytest.approx(1.0)
    assert budget.holds(Tokens(300_000, 40_000))
    assert not budget.holds(Tokens(300_000, 40_001))
    assert Budget().cost(Tokens(1, 1)) is None
    assert Budget(price_in=0.0, price_out=0.0).cost(Tokens(9, 9)) == 0.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_cost": 1.0}, "money needs both --price-in and --price-out"),
        ({"price_in": 1.0}, "money needs both --price-in and --price-out"),
        ({"max_cost": 1.0, "price_in": 0.0, "price_out": 0.0}, "and not both 0"),
        ({"max_cost": 0.0, "price_in": 1.0, "price_out": 1.0}, "--max-cost 0.0: give a number above 0"),
        ({"max_time": -1.0}, "--max-time -1.0"),
        ({"max_total_tokens": 0}, "--max-total-tokens 0"),
        ({"max_time": float("nan")}, "--max-time nan"),
        ({"price_in": -0.1, "price_out": 1.0}, "--price-in -0.1"),
    ],
)
def test_budgets_that_cannot_be_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        Budget(**settings)


@pytest.mark.parametrize(
    "turns",
    [lambda i: 4, lambda i: 1 + i % 13, lambda i: 2 if i < 100 else 40, lambda i: 30 if i % 10 == 9 else 1],
    ids=["alike", "mixed", "dear at the end", "seldom dear"],
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_limit_on_tokens_is_never_exceeded_and_most_of_it_is_used(register_env, turns, share):
    name = register_env(Talk)
    whole = Speaker(turns)
    play(name, whole, Budget())
    limit = int(whole.spent.total * share)
    speaker = Speaker(turns)
    evaluation = play(name, speaker, Budget(max_total_tokens=limit))
    assert speaker.spent.total <= limit
    assert evaluation.tokens.total <= speaker.spent.total
    assert evaluation.num_played < evaluation.num_planned == 120
    assert evaluation.undecided == (evaluation.coverage < 0.9)
    assert 0 <= evaluation.num_cut <= 16
    if evaluation.coverage > 0.9:  # then all that is missing was begun, and was too long
        assert evaluation.num_cut == 120 - evaluation.num_played
    if share > 0.02:
        assert speaker.spent.total > 0.6 * limit
        assert evaluation.num_scored == evaluation.num_played > PILOT


def test_a_limit_on_money_is_never_exceeded(register_env):
    speaker, budget = Speaker(lambda i: 1 + i % 7), Budget(price_in=3.0, price_out=15.0, max_cost=0.05)
    evaluation = play(register_env(Talk), speaker, budget)
    assert 0.03 < (budget.cost(speaker.spent) or 0) <= 0.05
    assert evaluation.cost == budget.cost(evaluation.tokens)
    assert evaluation.cost_per_success == pytest.approx(evaluation.cost / evaluation.overall.successes)


def test_a_budget_that_suffices_changes_nothing(register_env):
    evaluation = play(register_env(Talk), Speaker(lambda i: 3), Budget(max_total_tokens=10**9, max_time=600.0))
    assert (evaluation.num_scored, evaluation.undecided) == (120, False)


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(register_env, run_path):
    name, budget = register_env(Talk), Budget(max_total_tokens=20_000)
    with Store(run_path) as store:
        first = play(name, Speaker(lambda i: 3), budget, store=store)
        kept = {e.key for e in store.episodes()}
        spent = sum((e.tokens for e in store.episodes()), Tokens())
        again = Speaker(lambda i: 3)
        assert play(name, again, budget, store=store, spent=spent).num_played >= first.num_played
        assert spent.total + again.spent.total <= 20_000  # the limit is of the whole run
        whole = play(name, Speaker(lambda i: 3), Budget(max_total_tokens=10**9), store=store)
        keys = [e.key for e in store.episodes()]
    assert whole.num_scored == len(keys) == len(set(keys)) == 120
    assert kept <= set(keys)


def test_a_spent_run_that_goes_on_with_the_same_budget_begins_nothing_and_cuts_nothing(register_env, run_path):
    name, budget = register_env(Talk), Budget(max_total_tokens=20_000)
    with Store(run_path) as store:
        first = play(name, Speaker(lambda i: 4), budget, store=store)
        again, meter = Speaker(lambda i: 4), Meter(budget, REPLY, Tokens(19_900, 100), before=store.episodes())
        second = play(name, again, budget, store=store, meter=meter)
    assert (second.num_played, second.num_cut, again.spent.total) == (first.num_played, 0, 0)


def test_an_episode_that_never_asked_is_not_said_to_be_cut(register_env):
    evaluation = play(register_env(Talk), Speaker(lambda i: 4), Budget(max_total_tokens=10))
    assert (evaluation.num_played, evaluation.num_cut) == (0, 0)


def test_what_is_written_down_is_never_less_than_what_was_spent(register_env):
    speaker, budget = Speaker(lambda i: 1 + i % 5), Budget(max_total_tokens=30_000)
    written: list[tuple[int, int]] = []
    meter = Meter(budget, REPLY, record=lambda tokens: written.append((tokens.total, speaker.spent.total)))
    play(register_env(Talk), speaker, budget, meter=meter)
    assert all(spent <= told <= 30_000 for told, spent in written)
    assert written[-1] == (meter.spent.total, meter.spent.total)  # in the end it is what was spent


def test_calls_and_thoughts_of_a_replayed_conversation_are_reckoned_too():
    called = assistant("", call("enter", code="9" * 6000)) | {"reasoning_content": "ö" * 1000}
    most = Meter(Budget(max_total_tokens=1), REPLY).most(NONE, {"messages": [called], "tools": None})  # type: ignore[typeddict-item]
    assert (most.prompt >= 6000 + 2000 + AROUND, most.sampled) == (True, REPLY)
    assert most.prompt < 8000 + AROUND + 250  # and little more: names and quotes


def test_where_a_budget_holds_one_episode_one_is_finished(register_env):
    name, alone = register_env(Talk), Speaker(lambda i: 12)
    play(name, alone, Budget(), limit=1)
    evaluation = play(name, Speaker(lambda i: 12), Budget(max_total_tokens=alone.spent.total * 2))
    assert evaluation.num_played >= 1


def test_a_reply_that_was_not_counted_is_paid_for_as_the_dearest_it_could_be(register_env):
    class Forgetful(Speaker):
        async def __call__(self, messages: list[Message], seed: int) -> dict[str, Any]:
            said = await super().__call__(messages, seed)
            return said if self.rng.random() < 0.8 else {"content": said["content"]}

    speaker, budget = Forgetful(lambda i: 3), Budget(max_total_tokens=20_000)
    meter = Meter(budget, REPLY)
    evaluation = play(register_env(Talk), speaker, budget, meter=meter)
    assert speaker.spent.total < meter.spent.total <= 20_000
    assert 0 < evaluation.num_played < 120


def test_a_reply_that_is_cut_is_paid_for_as_the_dearest_it_could_be(register_env):
    budget = Budget(max_total_tokens=10_000, max_time=0.3)
    meter = Meter(budget, REPLY)
    evaluation = play(register_env(Talk), Speaker(lambda i: 1, delay_s=60.0), budget, meter=meter)
    opening = len('{"role": "user", "content": "Talk about 0."}')
    assert (meter.spent, evaluation.num_cut) == (Tokens(opening + AROUND, REPLY), 1)


def test_time_ends_what_is_under_way_and_keeps_what_is_done(register_env, run_path):
    with Store(run_path) as store:
        evaluation = play(
            register_env(Talk), Speaker(lambda i: 2 if i < 8 else 10_000, delay_s=0.01), Budget(max_time=1.0),
            store=store, concurrency=4,
        )  # fmt: skip
        assert evaluation.num_played == len(list(store.episodes())) == 8
    assert (evaluation.undecided, evaluation.num_cut) == (True, 4)


def test_the_estimate_of_the_pilot_is_that_of_its_episodes_times_all(register_env):
    speaker, tally, seen = Speaker(lambda i: 1), Tally(), []

    def progress(done: int, planned: int) -> None:
        if tally.is_pilot and done == PILOT:
            seen.append((tally.tokens, tally.tokens_in_all, planned))

    play(register_env(Talk), speaker, Budget(max_total_tokens=10**6), tally=tally, progress=progress)
    ((few, whole, planned),) = seen
    assert (planned, whole.prompt, whole.sampled) == (120, few.prompt * 30, few.sampled * 30)


def test_a_policy_that_counts_no_tokens_cannot_keep_a_budget_and_says_so(register_env):
    with pytest.raises(ConfigError, match="does not count tokens"):
        play(register_env(Talk), Scripted(["stop"]), Budget(max_total_tokens=1000))


def test_an_interrupted_budgeted_run_leaves_no_task_behind(register_env):
    name = register_env(Talk)

    async def cancelled() -> int:
        speaker = Speaker(lambda i: 1000, delay_s=0.01)
        work = asyncio.ensure_future(
            evaluate(
                name, ChatPolicy(from_function(speaker.__call__)), store=None, run="x", limit=20,
                meter=Meter(Budget(max_time=60.0), REPLY), steady=False,
            )
        )  # fmt: skip
        before = len(asyncio.all_tasks()) - 1
        await asyncio.sleep(0.1)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return len(asyncio.all_tasks()) - before

    assert run_sync(cancelled()) <= 0


def test_an_episode_with_a_ledger_has_read_each_token_once(episode):
    from agentgym.ledger import Ledger, Segment, Source

    plain: Episode = episode()
    ledger = Ledger([Segment([1, 2, 3], Source.OBSERVED, 0), Segment([4, 5], Source.SAMPLED, 0, [-1, -1], 0)])
    from dataclasses import replace

    assert replace(plain, ledger=ledger).tokens == Tokens(3, 2)
    counted = {"role": "assistant", "content": "", "num_tokens": 7, "prompt_tokens": 11}
    assert replace(plain, messages=(user("x"), counted, counted)).tokens == Tokens(22, 14)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_model_in_process_whose_episodes_wait_for_one_another_keeps_its_budget_too(model_folder, run_path, share):
    from agentgym.policies.local import load_policy

    def spend(budget: Budget, store: Store | None = None) -> Evaluation:
        policy = load_policy(model_folder("llama"), max_tokens=REPLY)
        meter = Meter(budget, REPLY)
        evaluation = run_sync(
            evaluate("agentgym/Lookup-v0", policy, store=store, run="x", limit=24, concurrency=6, meter=meter)
        )
        assert evaluation.tokens.total <= meter.spent.total or not budget.limits_tokens
        assert not budget.limits_tokens or meter.spent.total <= budget.max_total_tokens  # type: ignore[operator]
        return evaluation

    whole = spend(Budget())
    assert whole.tokens.prompt > 0
    assert whole.tokens.sampled > 0
    limit = int(whole.tokens.total * share)
    with Store(run_path) as store:
        part = spend(Budget(max_total_tokens=limit), store)
        assert part.num_played < 24
        assert part.tokens.total <= limit
        assert spend(Budget(), store).num_played == 24


def test_many_at_once_in_process_play_as_much_as_few_and_pay_for_nothing_else(model_folder):
    from agentgym.policies.local import load_policy

    def spend(concurrency: int, limit: int | None = None) -> tuple[Evaluation, Meter]:
        policy = load_policy(model_folder("llama"), max_tokens=REPLY)
        meter = Meter(Budget(max_total_tokens=limit), REPLY)
        options = {"store": None, "limit": 48, "concurrency": concurrency, "meter": meter}
        return run_sync(evaluate("agentgym/Door-v0", policy, run="x", **options)), meter

    whole = spend(48)[0].tokens.total
    for concurrency in (1, 48):
        evaluation, meter = spend(concurrency, whole + 10_000)  # room for a few replies at their longest
        assert evaluation.num_played == 48
        assert meter.spent == evaluation.tokens


def test_tokens_are_counted_where_nothing_limits_them_too(register_env):
    speaker, meter = Speaker(lambda i: 1 + i % 3), Meter(Budget(), REPLY)
    evaluation = play(register_env(Talk), speaker, Budget(), meter=meter)
    assert meter.spent == evaluation.tokens == speaker.spent != NONE
