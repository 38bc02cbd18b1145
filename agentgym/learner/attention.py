"""Attention within a packed line or a tree, for any model that goes through transformers' attention interface.

Owns the masks and the registered function. On a CPU a line attends through a dense mask and torch's SDPA; on a GPU
packed lines through torch's variable-length kernel and trees through FlexAttention, whose backward passes a CPU does
not have. A model that does not keep packed rows apart is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.learner.pack import Layout, Part

IMPLEMENTATION = "agentgym"
DENSE_TOKENS = 4096  # of a line with a dense mask, which has the square of it
GPU_MULTIPLE = 1024  # lengths of lines on a GPU: FlexAttention compiles anew for every one


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Rows of a packed line as the variable-length kernel wants them."""

    starts: Tensor  # [rows + 1] int32, cumulative lengths
    longest: int


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: query [B, heads, n, width] -> [B, n, heads, width]. A BlockMask goes to
    FlexAttention, `spans` to the variable-length kernel, all else to SDPA."""
    spans: Spans | None = kwargs.pop("spans", None)
    scale = kwargs.get("scaling")
    if isinstance(attention_mask, BlockMask):
        grouped = query.shape[1] != key.shape[1]
        made = _compiled_flex()(query, key, value, block_mask=attention_mask, scale=scale, enable_gqa=grouped)
        return made.transpose(1, 2).contiguous(), None
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  an older torch has none

    groups = query.shape[1] // key.shape[1]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    made = varlen_attn(
        q, k, v, spans.starts, spans.starts, spans.longest, spans.longest, window_size=(-1, 0), scale=scale
    )
    return made[None], None  # type: ignore[index]


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def inputs(part: Part, layout: Layout, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What a model of that dtype is given beside ids and positions so that each token sees its own row alone."""
    ends = part.ends
    if ends is None:
        return {"mask": None}
    size = len(ends)
    if ends.device.type == "cpu":
        at = torch.arange(size)
        return {"mask": ((at[None] <= at[:, None]) & (at[:, None] < ends[None]))[None, None]}
    if layout == "packed" and dtype != torch.float32:  # the kernel has no float32
        starts = torch.cat([ends.new_zeros(1), ends.unique()]).to(torch.int32)
        anything = torch.zeros(1, 1, 1, 1, device=ends.device)  # keeps transformers from building a mask of its own
        return {"mask": anything, "spans": Spans(starts, part.longest)}

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < ends[k])

    return {"mask": create_block_mask(sees, None, None, size, size, device=ends.device, _compile=True)}


def prepare(lm: CausalLM, layout: Layout) -> None:
    """Make the model attend by layout, and prove that it does. Raises ConfigError for a model that cannot."""
    if layout == "padded":
        return
    if lm.device.type != "cpu":
        lm.model.set_attn_implementation(IMPLEMENTATION)
    if not _keeps_apart(lm, layout):
        raise ConfigError(
            f"model type {lm.model.config.model_type!r} does not keep rows apart in a {layout} line: its attention "
            "takes no mask or positions of ours. Use --layout padded."
        )


@torch.no_grad()
def _keeps_apart(lm: CausalLM, layout: Layout) -> bool:
    """Whether two rows in one line give what each gives alone."""
    device = lm.device
    rows = [torch.arange(1, 8, device=device), torch.arange(3, 16, 2, device=device)]
    rows = [row.remainder(lm.vocab_size) for row in rows]
    line = torch.cat(rows)[None]
    positions = torch.cat([torch.arange(len(row), device=device) for row in rows])[None]
    size = len(rows[0])
    ends = torch.tensor([size] * size + [2 * size] * size, device=device)
    empty = torch.zeros(0, dtype=torch.long, device=device)
    part = Part(line, positions, ends, *[empty] * 7, longest=size)
    with lm.evaluating():
        try:
            whole = lm.hidden(line, positions=positions, **inputs(part, layout, lm.model.dtype))[0]
            alone = torch.cat([lm.hidden(row[None], positions=None, mask=None)[0] for row in rows])
        except (TypeError, ValueError, RuntimeError):
            return False
    tolerance = 1e-3 if alone.dtype == torch.float32 else 5e-2
    return bool((whole - alone).abs().max() <= tolerance * alone.abs().max())


@lru_cache(1)
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)
