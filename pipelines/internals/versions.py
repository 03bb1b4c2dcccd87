"""Whether an installed library is the one whose internals were read."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence


def require(distributions: Sequence[str], version: str) -> None:
    """Raises `ImportError` if none of the distributions has this version: internals can change
    with every release, so nothing is guessed.

    Args:
        distributions: builds of one library, such as onnxruntime and onnxruntime-gpu.
    """
    installed = {}
    for name in distributions:
        try:
            # What stands behind the "+" is the build.
            installed[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    if version not in installed.values():
        have = ", ".join(f"{name} {known}" for name, known in installed.items()) or "none"
        name = next(iter(installed), distributions[0])
        raise ImportError(
            f"this code uses internals of {distributions[0]} {version}; installed is {have}: "
            f"pip install {name}=={version}"
        )
