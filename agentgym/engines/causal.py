"""Any Hugging Face causal LM as two functions: ids -> hidden states, hidden states -> logits.

Owns loading a model from a folder or hub name, the split into backbone and head (proved on the model itself before
it is used), and the refusal of models whose cache is not the standard one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from agentgym.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


class CausalLM:
    """A causal LM whose head can be applied to chosen positions only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        _refuse_other_caches(model)
        self._backbone: nn.Module | None = model.base_model if _splits(model) else None
        self._head: nn.Module | None = model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocab_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]

    @property
    def max_context(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 20)

    @property
    def linear_head(self) -> nn.Linear | None:
        """The head, where it is no more than a matrix behind the backbone."""
        head = self._head if self._backbone is not None else None
        return head if type(head) is nn.Linear else None

    def hidden(self, ids: Tensor, *, positions: Tensor | None, mask: Any, cache: Any = None, **more: Any) -> Tensor:
        """ids [B, n] int64, positions [B, n] or None (0, 1, …), mask None (causal) or additive [B, 1, n, keys] -> what
        `logits` takes ([B, n, width], or the logits themselves for a model that cannot be split). `more` reaches the
        model's attention."""
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, **more}
        inputs |= {"past_key_values": cache, "use_cache": cache is not None}
        if self._backbone is None:
            return self.model(**inputs).logits
        return self._backbone(**inputs).last_hidden_state

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout, in which a learner would score another policy than the one that sampled; afterwards every
        module is in its own mode again."""
        training = [module for module in self.model.modules() if module.training]
        if training:
            self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., width] -> logits [..., vocabulary] in float32."""
        if self._backbone is None or self._head is None:
            return hidden.float()
        head = self.linear_head
        if head is None or hidden.device.type == "cpu":
            return self._head(hidden).float()
        z = float_matmul(hidden.flatten(0, -2), head.weight.T).unflatten(0, hidden.shape[:-1])
        return z if head.bias is None else z + head.bias


def float_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] @ b [k, m] -> [n, m] float32: on a GPU products of low precision are summed and given in float32."""
    if a.dtype != torch.float32 and a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """A causal LM from a local folder or a hub name. Raises ConfigError naming the path and the fix."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: give one of {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch {torch.__version__} sees no GPU; use cpu")
    model, report = _load(AutoModelForCausalLM, name, dtype=getattr(torch, dtype), output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"{name!r} has no weights for {missing[0]} and {len(missing) - 1} more: they would be drawn at random. "
            "Its config.json belongs to another model, or a file is missing."
        )
    return model.to(device)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return _load(AutoTokenizer, name)


def _load(kind: Any, name: str, **kwargs: Any) -> Any:
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or path.exists() or name.count("/") > 1
    if looks_local and not (path / "config.json").is_file():
        raise ConfigError(
            f"no model at {name!r}: a model folder holds config.json, weights and a tokenizer. "
            "Give a folder written by save_pretrained (a run keeps its own in model/), or a hub name."
        )
    try:
        return kind.from_pretrained(str(path) if looks_local else name, **kwargs)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{kind.__name__} cannot load {name!r}: {reason}") from error


def _refuse_other_caches(model: PreTrainedModel) -> None:
    layers = DynamicCache(config=model.config).layers
    odd = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if odd:
        raise ConfigError(
            f"model type {model.config.model_type!r} keeps {', '.join(odd)} in its cache; the local engine supports "
            "full attention in every layer. Use a model with full attention, or serve this one over HTTP."
        )


@torch.no_grad()
def _splits(model: PreTrainedModel) -> bool:
    """Whether head(backbone(ids)) gives this model's logits (some scale or cap them in between)."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    ids = torch.arange(4, device=model.device).remainder(model.config.vocab_size)[None]
    was_training = model.training
    model.eval()
    whole = model(input_ids=ids, use_cache=False).logits
    parts = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    model.train(was_training)
    return torch.equal(whole, parts)
