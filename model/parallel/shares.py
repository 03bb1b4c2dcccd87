"""Tensors of which each process has a share: PyTorch's DTensor. A plain tensor is a whole one.

Imports nothing of `torch.distributed`, which takes its time.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def _is_shared(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The numbers that this process has of a tensor."""
    return cast(Any, tensor).to_local() if _is_shared(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; all processes that have a share must ask for it."""
    return cast(Any, tensor).full_tensor() if _is_shared(tensor) else tensor


def own_share(tensor: Tensor, like: Tensor) -> Tensor:
    """The share of a tensor that this process has of another of the same shape; all of it, if that
    one is whole. Every process must have all of the tensor, and nothing is sent."""
    if not _is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
