"""The engine: reads a pipeline file, decides what must run, runs it and remembers.

Knows nothing of models or media; stages come in through `pipelines.registry`.
"""

from pipelines.version import VERSION as __version__

__all__ = ["__version__"]
