"""Small real models with a real tokenizer: trained or drawn here, saved as folders, and loaded as a user's are."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the machines that run tests are small and shared
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whoever asks the hub for something has made a mistake

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:  # most tests need neither torch nor transformers
    from transformers import PreTrainedTokenizerBase

    from agentgym.engines.base import Engine
    from agentgym.engines.causal import CausalLM
    from agentgym.learner.pack import Trajectory
    from agentgym.ledger import Ledger

TEXTS = (
    "Start at 33. Follow the links to the first red key and say its number.",
    "The note says: the code is 7404. A red light, a blue light, and no light at all.",
    "Ordnung muß sein, naïve façade; 你好, emoji 🙂 and a tab\tand\nnew lines\n\n",
    '<tool_call>\n{"name": "lookup", "arguments": {"key": 33}}\n</tool_call>',
)
CONTEXT = 1024
SHAPE = {"vocab_size": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Kind of model -> folder with config, weights, tokenizer and chat template. Kinds: llama, qwen3 (grouped queries,
    norms of queries and keys), gpt2 (learned positions, dropout), mistral (sliding window).

    Weights are drawn so wide that distributions are far from uniform: a wrong position or a stale cache is seen."""
    import torch
    import transformers

    from agentgym.learner.scratch import scratch_tokenizer

    torch.set_num_threads(1)
    tokenizer = scratch_tokenizer(TEXTS * 3, vocabulary=340)
    end = int(tokenizer.eos_token_id)
    common = SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
    common |= {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}  # padding is a matter of lengths
    made: dict[str, str] = {}

    def config(kind: str) -> Any:
        if kind == "llama":
            return transformers.LlamaConfig(**common, tie_word_embeddings=True)
        if kind == "qwen3":
            return transformers.Qwen3Config(**common, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)
        if kind == "mistral":
            return transformers.MistralConfig(**common, num_key_value_heads=2, sliding_window=16)
        return transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
            bos_token_id=None, eos_token_id=end,
        )  # fmt: skip

    def folder(kind: str) -> str:
        if kind not in made:
            torch.manual_seed(len(kind))
            path = tmp_path_factory.mktemp("models") / kind
            transformers.AutoModelForCausalLM.from_config(config(kind)).save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[kind] = str(path)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def load(model_folder: Callable[[str], str]) -> Callable[..., CausalLM]:
    """A kind of model, loaded anew: whoever trains it disturbs nobody."""
    from agentgym.engines.causal import CausalLM, load_model

    def loaded(kind: str = "llama", dtype: str = "float32") -> CausalLM:
        return CausalLM(load_model(model_folder(kind), dtype=dtype).eval())

    return loaded


@pytest.fixture(scope="session")
def tokenizer(model_folder: Callable[[str], str]) -> PreTrainedTokenizerBase:
    from agentgym.engines.causal import load_tokenizer

    return load_tokenizer(model_folder("llama"))


@pytest.fixture(scope="session")
def converse() -> Callable[..., Any]:
    """An episode of plain ids: so many observed tokens, a reply, so many observed tokens, …"""
    from agentgym.engines.base import Sampling
    from agentgym.ledger import Ledger, Segment, Source

    async def played(
        engine: Engine,
        seed: int,
        observed: Sequence[int],
        *,
        max_tokens: int = 12,
        temperature: float = 1.0,
        stop_ids: tuple[int, ...] = (1,),
        between: Callable[[int], Any] | None = None,
    ) -> Ledger:
        """`between(turn)` is awaited before each turn."""
        chance, ledger, session = np.random.default_rng(seed), Ledger(), engine.open()
        history: list[int] = []
        for turn, count in enumerate(observed):
            if between is not None:
                await between(turn)
            said = chance.integers(0, 300, count).tolist()
            ledger.append(Segment(said, Source.OBSERVED, turn))
            history += said
            sampling = Sampling(1000 * seed + turn, max_tokens, temperature, stop_ids)
            made = await engine.generate(session, history, sampling)
            for version, a, b in made.spans():
                ledger.append(Segment(made.ids[a:b], Source.SAMPLED, turn, made.logprobs[a:b], version))
            history += made.ids.tolist()
        engine.close(session)
        return ledger

    return played


@pytest.fixture(scope="session")
def trajectory() -> Callable[..., Trajectory]:
    """A ledger with the same advantage for each of its turns, or with the advantages given."""
    from agentgym.learner.pack import Trajectory

    def made(ledger: Ledger, advantage: float | Sequence[float] = 1.0, trains: Any = "sampled") -> Trajectory:
        return Trajectory(ledger, np.full(ledger.num_turns, advantage, np.float32), trains)

    return made


@pytest.fixture(scope="session")
def forward() -> Callable[..., np.ndarray]:
    """log p of every token but the first of one row, by the model alone: no cache, no packing, no engine."""
    import torch

    def logp(lm: CausalLM, ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        given = torch.tensor([list(map(int, ids))])
        with torch.no_grad():
            logits = lm.model(input_ids=given).logits[0, :-1].double()
        return torch.log_softmax(logits / temperature, -1).gather(-1, given[0, 1:, None])[:, 0].numpy()

    return logp


@pytest.fixture
def register_env() -> Iterator[Callable[[type], str]]:
    """Name an environment class of a test module, which has no importable name, for the length of a test."""
    import gymnasium

    from agentgym import register

    names: list[str] = []

    def named(cls: type) -> str:
        name = f"test/{cls.__name__}-v0"
        if name not in names:
            register(name, f"{cls.__module__}:{cls.__name__}")
            gymnasium.registry[name].entry_point = cls
            names.append(name)
        return name

    yield named
    for name in names:
        del gymnasium.registry[name]


@pytest.fixture(autouse=True)
def forgotten_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test wrote and imported is forgotten with it: another test's module of that name is another module."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture(scope="session")
def working() -> Callable[[str], Any]:
    """A sandbox backend by name, where it works. Where CI is set a missing one fails the test; elsewhere it skips."""
    from agentgym.errors import AgentGymError
    from agentgym.loop import run_sync
    from agentgym.sandbox import backend

    def made(name: str) -> Any:
        try:
            found: Any = backend(name)
            run_sync(found.probe())
            if name == "docker":
                found.default_image()
        except (AgentGymError, ModuleNotFoundError) as error:
            if os.environ.get("CI"):
                pytest.fail(f"{name} does not work here: {error}")
            pytest.skip(f"{name} does not work here: {error}")
        return found

    return made


@pytest.fixture(scope="session")
def bubblewrap(working: Callable[[str], Any]) -> Any:
    return working("bubblewrap")


@pytest.fixture(scope="session")
def docker_backend(working: Callable[[str], Any]) -> Any:
    return working("docker")


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Path:
    """The folder of real benchmark data: AGENTGYM_DATA. Where CI is set its absence fails the test; else it skips."""
    path = os.environ.get("AGENTGYM_DATA", "")
    if not Path(path or "/nowhere").is_dir():
        text = f"AGENTGYM_DATA is {path!r}: no folder of benchmark data"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    return Path(path)


# Tests that start, count or reap containers and sandboxes of this machine: one after the other, whoever else runs.
ALONE = ("sandboxes/", "cli/test_sandbox", *(f"envs/test_{name}" for name in ("code", "repair", "shell", "terminal")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (pytest -n), a file stays together, and so do all that use sandboxes. (pytest-xdist's own
    groups are lost under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.partition("::")[0].removeprefix("tests/")
            return "sandboxes" if name.startswith(ALONE) else name

    return Together(config, log)
