"""The engine: reads a pipeline file, decides what must run, runs it and remembers.

It knows nothing about models or media; stages are added through `pipelines.registry`.
"""

from pipelines.version import VERSION as __version__

__all__ = ["__version__"]
