"""The object that environments hold: faces, first use, copies, pools, records."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading

import gymnasium
import pytest

from agentgym import ConfigError, PolicyError, Rubric, Task, TaskSet, assistant, call, make
from agentgym.errors import InfrastructureError
from agentgym.loop import run_sync
from agentgym.policies.builtin import builtin
from agentgym.rollout.driver import Driver, Slot
from agentgym.sandbox import (
    MIB,
    BashTool,
    EngineUnreachable,
    ExecResult,
    Limits,
    Output,
    Pool,
    PythonTool,
    Sandbox,
    SandboxEnv,
    SandboxExhausted,
    SandboxLost,
    Spec,
    backend,
    parse_bytes,
    told,
)

SMALL = Spec(limits=Limits(memory_bytes=64 * MIB))


# -- words and numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("512m", 512 << 20), ("2g", 2 << 30), ("1.5G", 3 << 29), ("65536", 65536)])
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1m", "1t", "m"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ConfigError, match="is no size"):
        parse_bytes(text)


def test_limits_that_cannot_be_are_refused_by_name():
    with pytest.raises(ConfigError, match="memory_bytes=1024"):
        Limits(memory_bytes=1024)
    with pytest.raises(ConfigError, match="half of it can be disk"):
        Limits(memory_bytes=64 * MIB, disk_bytes=60 * MIB)
    with pytest.raises(ConfigError, match="wall_s=0"):
        Limits(wall_s=0)


def test_a_closed_sandbox_has_no_grants_and_an_open_one_names_them():
    assert Spec().grants == {}
    assert Spec(network=True, root=True, capabilities=("CHOWN",)).grants == {
        "network": True,
        "root": True,
        "capabilities": ["CHOWN"],
    }


def test_a_cut_never_splits_a_character():
    whole = "aé" * 10
    data = whole.encode()
    text, replaced = Output(data[:8], data[-7:], len(data) + 100).text()
    assert text == "aéaéa\n[… 117 bytes left out …]\naéaé"
    assert not replaced


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(ConfigError, match="no sandbox backend 'dokcer'; did you mean 'docker'"):
        backend("dokcer")


def test_the_process_backend_refuses_without_a_word():
    with pytest.raises(ConfigError, match="unsafe=True"):
        backend("process")


def test_no_automatic_choice_is_without_isolation(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    from agentgym.sandbox import backends

    monkeypatch.setattr(backends, "_made", backends._made.__wrapped__)
    with pytest.raises(EngineUnreachable) as none:
        run_sync(backends.backend("auto").start(SMALL))
    assert "dockerd" in str(none.value)
    assert "apt-get install bubblewrap" in str(none.value)


def test_without_an_engine_auto_is_bubblewrap_and_says_so(bubblewrap, monkeypatch, caplog):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    from agentgym.sandbox import backends

    monkeypatch.setattr(backends, "_made", backends._made.__wrapped__)
    sandbox = Sandbox(backends.backend("auto"), SMALL)
    assert sandbox.sync.exec("echo on").stdout == "on\n"
    sandbox.sync.close()
    assert "not docker: no Docker engine answers" in caplog.text


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_sandbox_starts_at_its_first_use_and_once(bubblewrap):
    sandbox = Sandbox(bubblewrap, SMALL)
    assert not sandbox.is_started
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(sandbox.sync.exec("echo $$ > id.$$; ls | wc -l").stdout))
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(count) for count in seen)[-1] == 8
    sandbox.sync.close()
    with pytest.raises(ConfigError, match="closed"):
        sandbox.sync.exec("true")


def test_it_can_be_used_from_any_loop(bubblewrap):
    sandbox = Sandbox(bubblewrap, SMALL)

    async def twice() -> list[str]:
        first, second = await asyncio.gather(sandbox.exec("echo 1"), sandbox.exec("echo 2"))
        return [first.stdout, second.stdout]

    assert asyncio.run(twice()) == ["1\n", "2\n"]
    assert asyncio.run(twice()) == ["1\n", "2\n"]
    sandbox.sync.close()


def test_commands_overlap(bubblewrap):
    sandbox = Sandbox(bubblewrap, SMALL)

    async def both() -> ExecResult:
        waiting = asyncio.ensure_future(sandbox.exec("while ! test -e go; do sleep 0.01; done; echo went"))
        await sandbox.exec("touch go")
        return await waiting

    assert run_sync(both()).stdout == "went\n"
    sandbox.sync.close()


def test_a_forgotten_sandbox_ends(bubblewrap):
    sandbox = Sandbox(bubblewrap, SMALL)
    sandbox.sync.start()
    before = len(bubblewrap.listed())
    del sandbox
    gc.collect()
    for _ in range(200):
        if len(bubblewrap.listed()) < before:
            break
        threading.Event().wait(0.01)
    assert len(bubblewrap.listed()) == before - 1


def test_a_deep_copy_begins_with_the_files_and_goes_its_own_way(bubblewrap):
    sandbox = Sandbox(bubblewrap, SMALL, files={"a": b"1"})
    untouched = copy.deepcopy(sandbox)
    sandbox.sync.exec("echo 2 > a; echo 3 > b")
    twins = [copy.deepcopy(sandbox) for _ in range(2)]
    twins[0].sync.exec("echo 4 > a")
    assert twins[1].sync.exec("cat a b").stdout == "2\n3\n"
    assert untouched.sync.exec("cat a; ls").stdout == "1a\n"
    for made in (sandbox, untouched, *twins):
        made.sync.close()


# -- pools -------------------------------------------------------------------------------------------------------------


def test_a_pool_hands_out_what_waits_and_fills_up_again(bubblewrap):
    with Pool(bubblewrap, SMALL, warm=2) as pool:
        assert pool.num_ready == 2
        sandbox = Sandbox(pool)
        assert sandbox.spec == SMALL
        assert sandbox.sync.exec("echo on").stdout == "on\n"
        run_sync(pool.fill())
        assert pool.num_ready == 2
        sandbox.sync.close()
        cold = Sandbox(pool, Spec(limits=Limits(memory_bytes=80 * MIB)))
        assert cold.sync.exec("echo cold").stdout == "cold\n"
        cold.sync.close()
    with pytest.raises(ConfigError, match="closed"):
        Sandbox(pool, SMALL).sync.start()


def test_a_pool_never_hands_out_the_dead(bubblewrap):
    with Pool(bubblewrap, SMALL, warm=2) as pool:
        for box in pool._ready:
            run_sync(box.cell.end())  # type: ignore[attr-defined]
        sandbox = Sandbox(pool)
        assert sandbox.sync.exec("echo on").stdout == "on\n"
        sandbox.sync.close()


def test_a_pool_whose_backend_fails_says_why_when_asked(bubblewrap):
    pool = Pool(backend("docker", image="no-such-image:ever"), warm=1)
    with pytest.raises(ConfigError, match="no-such-image"):
        Sandbox(pool).sync.start()
    pool.close()


# -- environments ------------------------------------------------------------------------------------------------------


def number(rng) -> Task:
    n = int(rng.integers(10**6))
    return Task(
        "Write the number.", str(n), gold=(assistant("", call("bash", command=f"echo {n} > n")), assistant("done"))
    )


class CountEnv(BashTool, PythonTool, SandboxEnv):
    """Write the number into a file."""

    tasks = TaskSet.procedural(number)
    rubric = Rubric(written=lambda o: float(o.final == o.task.answer))

    async def setup(self) -> None:
        await self.open_sandbox({"given": b"x"})

    async def final(self) -> str:
        await self.sandbox.kill_all()
        try:
            return (await self.sandbox.read("n")).decode().strip()
        except PolicyError:
            return ""
        finally:
            await self.close_sandbox()


gymnasium.register("test/Count-v0", CountEnv)


def test_an_environment_runs_its_episodes_in_sandboxes(bubblewrap):
    driver = Driver("test/Count-v0", builtin("gold"), run="eval", env_kwargs={"sandbox": bubblewrap}, concurrency=4)
    env = make("test/Count-v0", sandbox="bubblewrap")
    split = env.unwrapped.tasks.split("train")  # type: ignore[attr-defined]
    slots = [Slot(split.id(i), 0, i, i) for i in range(6)]
    episodes = run_sync(driver.collect(slots))
    assert [e.reward for e in episodes] == [1.0] * 6
    assert all(e.grants == {} for e in episodes)
    driver.close()
    env.close()


def test_a_forked_episode_continues_twice_from_one_state(bubblewrap):
    env = make("test/Count-v0", sandbox="bubblewrap")
    env.reset(seed=1)
    env.step(assistant("", call("bash", command="mkdir d; cd d; echo 1 > here; A=5")))
    state = env.unwrapped.state()  # type: ignore[attr-defined]
    seen = []
    for name in ("x", "y"):
        env.reset(options={"state": state})
        observation = env.step(assistant("", call("bash", command=f"touch d/{name}; ls d")))[0]
        seen.append(observation["messages"][-1]["content"])
    assert seen == ["here\nx\n", "here\ny\n"]
    env.close()


def test_a_lost_sandbox_is_played_again_and_never_scored(bubblewrap):
    class Breaks(CountEnv):
        broken = 0

        async def final(self) -> str:
            if Breaks.broken < 1:
                Breaks.broken += 1
                await self.sandbox._box.cell.end()  # type: ignore[union-attr]
            return await super().final()

    gymnasium.register("test/Breaks-v0", Breaks)
    env = make("test/Breaks-v0", sandbox="bubblewrap")
    split = env.unwrapped.tasks.split("train")  # type: ignore[attr-defined]
    for retries, reward, kind in ((1, 1.0, None), (0, 0.0, "infrastructure")):
        Breaks.broken = 0
        driver = Driver("test/Breaks-v0", builtin("gold"), run="x", env_kwargs={"sandbox": bubblewrap}, retries=retries)
        (episode,) = run_sync(driver.collect([Slot(split.id(0), 0, 0, 0)]))
        assert episode.reward == reward
        assert (episode.failure and episode.failure.kind) == kind
        assert episode.counts == (kind is None)
        driver.close()
    env.close()


def test_memory_that_the_agent_used_up_counts_against_it():
    assert issubclass(SandboxExhausted, PolicyError)
    assert issubclass(SandboxLost, InfrastructureError)
    assert issubclass(EngineUnreachable, InfrastructureError)


def test_a_result_reads_as_text_with_what_else_must_be_known():
    done = ExecResult("out\n", "", 137, True, False, True, 1.0, "agent", undecodable=True, alive=False)
    assert told(done, 5) == (
        "out\n\n[timed out after 5 s and was killed; it was restarted, and its state is lost]\n"
        "[a process was killed because the sandbox's memory was used up]\n[bytes that are no UTF-8 were replaced]"
    )
    assert told(ExecResult("", "", 0, False, False, False, 1.0, "agent", alive=True), 5) == "[no output]"


def test_two_backend_objects_of_one_process_leave_each_others_sandboxes_alone(bubblewrap):
    first, second = (Sandbox(type(bubblewrap)()) for _ in range(2))
    assert first.sync.exec("echo one").stdout == "one\n"
    assert second.sync.exec("echo two").stdout == "two\n"
    assert first.sync.exec("echo one").stdout == "one\n"
    first.sync.close(), second.sync.close()
