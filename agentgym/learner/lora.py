"""Low-rank adapters instead of all weights (LoRA, Hu et al. 2021), by peft.

Owns putting them into a model, switching them off, and writing a model out with them added in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentgym.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Train low-rank adapters instead of all weights."""

    lora_rank: int = 0
    """Rank of the adapters on every matrix of the blocks; 0 trains all weights."""
    lora_alpha: int = 32
    """Their scale is this over the rank."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ConfigError(f"lora_rank {self.lora_rank}, lora_alpha {self.lora_alpha}: at least 0, and above 0")


def add_adapters(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Freeze the model and put float32 adapters on all its linear layers but the head; what they add is zero at
    first."""
    try:
        import peft  # noqa: PLC0415  an extra of its own
    except ModuleNotFoundError:
        raise ConfigError("--lora-rank needs peft: pip install -e '.[lora]' in your clone") from None
    settings = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)


@contextmanager
def adapters_off(model: nn.Module, off: bool) -> Iterator[None]:
    """The model as it was before adapters, where `off`."""
    layers = _adapted(model) if off else {}
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


def merged_weights(model: nn.Module, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `whole` state of an adapted model as that of a model without adapters, what they add added in: W + s B A.
    The model's own tensors, which may be sharded, are not read."""
    state = {k.replace(".base_layer.", "."): v for k, v in whole.items() if "lora_" not in k}
    for name, layer in _adapted(model).items():
        weight = state[f"{name}.weight"]
        a, b = (whole[f"{name}.lora_{which}.default.weight"].float() for which in "AB")
        added = layer.scaling["default"] * (b @ a)
        state[f"{name}.weight"] = weight + (added.T if layer.fan_in_fan_out else added).to(weight.dtype)
    return state


def is_adapted(model: nn.Module) -> bool:
    return bool(_adapted(model))


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
