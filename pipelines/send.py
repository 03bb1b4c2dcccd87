"""Sends finished runs to other systems: `python -m pipelines.send openlineage runs/gemini/latest`.
See `pipelines.finished.lineage` and `pipelines.finished.traces`."""

import argparse
import sys

from pipelines.finished import lineage, traces

WAYS = {"openlineage": lineage.main, "otlp": traces.main}


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.send",
        description="Sends finished runs to OpenLineage, or as traces to OpenTelemetry (OTLP).",
    )
    command.add_argument("to", choices=sorted(WAYS))
    command.add_argument("rest", nargs=argparse.REMAINDER, metavar="RUN", help="run folders")
    options = command.parse_args(arguments)
    return WAYS[options.to](options.rest)


if __name__ == "__main__":
    sys.exit(main())
