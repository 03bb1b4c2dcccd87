"""The processes that train a model together; or one process alone, which is a team of one.

Each has some lanes of a step (see `model.training.gradients`), and a share of the weights, the
gradients and the optimizer's state: PyTorch's `fully_shard` (Zhao et al., 2023). Gradients are sent
to whoever has the weight, and added there in the order of the lanes, so that the sums have the same
bits whatever the number of processes. For each lane of a process this moves as many bytes as a
reduce-scatter does; with one lane for each process it is one for a step.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from model.contract import EncoderDecoder
from model.parallel.layout import Layout
from model.parallel.shares import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def in_pairs(summands: list[Tensor]) -> Tensor:
    """The sum of 2^n tensors, added in pairs, and the pairs in pairs again; changes them."""
    while len(summands) > 1:
        summands = [
            first.add_(second) for first, second in zip(summands[::2], summands[1::2], strict=True)
        ]
    return summands[0]


class OrderedReduceScatter:
    """What `fully_shard` takes instead of its own reduce-scatter: adds in the order of ranks."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        output_tensor.copy_(in_pairs(list(received.chunk(group.size()))))


class Team:
    """Who computes what, seen by one process."""

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout = layout or Layout()
        self.size = layout.processes
        self.rank = 0
        self._mesh: DeviceMesh | None = None
        if self.size > 1:
            from torch.distributed.device_mesh import init_device_mesh

            self.rank = dist.get_rank()
            self._mesh = init_device_mesh(
                "cuda" if torch.cuda.is_available() else "cpu",
                (layout.dp_replicate, layout.dp_shard),
                mesh_dim_names=("dp_replicate", "dp_shard"),
            )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def meet(self) -> None:
        """Waits for all processes."""
        if self._mesh is not None:
            dist.barrier()

    def lanes(self, parts: int) -> range:
        """The lanes of this process, in their order, of so many."""
        return range(self.rank, parts, self.size)

    def share(self, model: EncoderDecoder) -> None:
        """Gives each process its share of the weights, which must be the same everywhere."""
        if self._mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard

        # A layer also returns keys and values as views; nothing writes into them.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = self._mesh["dp_shard"]
        for layer in model.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(OrderedReduceScatter())  # type: ignore[arg-type]
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                module.set_reduce_scatter_unused_params(True)
                if self.layout.dp_replicate > 1:
                    module.set_all_reduce_hook(self._add_replicas)

    def _add_replicas(self, gradients: Tensor) -> None:
        assert self._mesh is not None
        group = self._mesh.get_group("dp_replicate")
        received = [torch.empty_like(gradients) for _ in range(group.size())]
        dist.all_gather(received, gradients, group=group)
        gradients.copy_(in_pairs(received))

    def ends_lane(self, model: Any, last: bool) -> None:
        """Says, before a part's gradients are computed, whether it is the last of its lane: only
        then are gradients sent."""
        if self._mesh is not None:
            model.set_requires_gradient_sync(last)

    def gathered(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers (fp64) of which each process has some, and zeros for those of the others."""
        if self._mesh is None:
            return numbers
        added = torch.from_numpy(numbers)
        dist.all_reduce(added)
        return added.numpy()

    def added(self, squares: Tensor) -> Tensor:
        """The sum over those who share the weights."""
        if self._mesh is not None:
            dist.all_reduce(squares, group=self._mesh.get_group("dp_shard"))
        return squares

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of which each process has a share, complete: on the CPU of the process that
        leads, and nothing elsewhere. All processes must ask for the same."""
        found = {}
        for name, tensor in named:
            complete = whole(tensor)
            if self.leads:
                found[name] = complete.detach().cpu()
        return found

    def tell(self, numbers: dict[str, float]) -> dict[str, float]:
        """What the process that leads knows, for all."""
        if self._mesh is None:
            return numbers
        text = json.dumps(numbers).encode()
        size = torch.tensor([len(text)])
        dist.broadcast(size, src=0)
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.leads:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(data, src=0)
        told: dict[str, float] = json.loads(data.numpy().tobytes())
        return told
