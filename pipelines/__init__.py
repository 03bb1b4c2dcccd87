"""The engine: reads a pipeline file, decides what must run, runs it and remembers.

Knows nothing of models or media; stages come in through `pipelines.registry`.
"""

__version__ = "0.1.0"
