"""The processes that train one model together: started by torchrun, sharded by FSDP2, summing by collectives.

Owns the process group. Every rank samples its share of the groups with whole weights of its own, and holds a shard of
the float32 weights, gradients and optimiser state; rank 0 alone writes files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

PATIENCE = timedelta(hours=12)  # while rank 0 evaluates, the others wait


class Ranks:
    """This process and the others; alone as made. All methods but the properties are collective: every rank must call
    them in the same order."""

    def __init__(self, size: int = 1, rank: int = 0, device: str | torch.device = "cpu") -> None:
        self.size = size
        self.rank = rank
        self.device = torch.device(device)
        self.asked_to_stop = False
        self._mesh: Any = init_device_mesh(self.device.type, (size,)) if size > 1 else None

    @classmethod
    def joined(cls, device: str = "cpu") -> Ranks:
        """Join the processes that torchrun started; alone where it did not."""
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if size == 1:
            return cls(device=device)
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo", timeout=PATIENCE)
        made = cls(size, rank, device)
        for number in (signal.SIGINT, signal.SIGTERM):  # ranks stop together, between two updates
            signal.signal(number, lambda *_: setattr(made, "asked_to_stop", True))
        return made

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def share(self, items: list) -> list:
        """Every size-th of the items, beginning with this rank's."""
        return items[self.rank :: self.size]

    def shard(self, root: nn.Module, layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
        """Split the module's parameters over the ranks: layer by layer, and what is left (embeddings, head) with the
        root. Computes in `dtype`; gradients are summed in float32."""
        if self.size == 1:
            return
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
        for layer in layers:
            fully_shard(layer, mesh=self._mesh, mp_policy=MixedPrecisionPolicy(dtype, torch.float32))
        fully_shard(root, mesh=self._mesh, mp_policy=policy)

    def whole(self, state: Any) -> Any:
        """The same nest of values with every sharded tensor gathered."""
        return tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, state)

    def shard_like(self, value: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, sharded as `like` is."""
        if not isinstance(like, DTensor):
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

    def total(self, values: dict[str, float], largest: Iterable[str] = ()) -> dict[str, float]:
        """Sums (or maxima) over the ranks of numbers that any of them may lack."""
        if self.size == 1:
            return values
        found = self.gather(values)
        names = sorted({name for each in found for name in each})
        peaks = set(largest)
        return {n: (max if n in peaks else sum)(each[n] for each in found if n in each) for n in names}

    def stopped(self) -> bool:
        """Whether any rank was asked to stop."""
        return any(self.gather(self.asked_to_stop))

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def from_leader(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()
