"""The command line: `python -m pipelines.run pipeline.yaml`. It has no logic of its own.

Define nothing here that a Beam step could need: this module is `__main__`.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Until the run itself takes it, Ctrl-C ends the process as it ends any program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from pipelines.contracts import shown

DESCRIPTION = """\
Runs the job that a pipeline file declares. Only what changed is run again: a stage whose options,
inputs, code and libraries have not changed is taken from the store."""

EXAMPLES = """\
examples:
  python -m pipelines.run pipeline.yaml                           run the job
  python -m pipelines.run pipeline.yaml --plan                    what would run, and why
  python -m pipelines.run pipeline.yaml --set train.steps=200     change an option for this run
  python -m pipelines.run pipeline.yaml --from generate           continue from a stage
  python -m pipelines.run pipeline.yaml --force train             run a stage again

exit codes:
  0 done   1 a stage failed   2 the pipeline file is wrong   3 a quality gate failed
  75 another run of this pipeline is in progress
  129, 130, 143 stopped: the terminal was closed, Ctrl-C, SIGTERM
A scheduler should start it again after 75, can after 1, and need not after 2 and 3."""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.run",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("pipeline", type=Path, help="the pipeline file (YAML)")
    add(
        "--plan",
        action="store_true",
        help="show for every stage whether it would run, and why; then stop",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="STAGE",
        help="run only this stage; can be repeated",
    )
    add("--from", dest="start", metavar="STAGE", help="run this stage and all that depend on it")
    add("--to", dest="end", metavar="STAGE", help="run this stage and all it depends on")
    add(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="run this stage even if its result is in the store; can be repeated",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.OPTION=VALUE",
        help="override an option, or a top-level key such as seed; can be repeated",
    )
    add(
        "--runs-dir",
        default="runs",
        metavar="DIR",
        help="where runs and their results are kept: a folder, or an object store such as "
        "s3://bucket/runs (default: %(default)s)",
    )
    add(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for another run of this pipeline to end (default: not at all)",
    )
    add(
        "--run-id",
        metavar="NAME",
        help="what the scheduler calls this run (default: what Airflow, Argo, GitHub or systemd "
        "say in the environment)",
    )
    add(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="what the console gets: lines for people, or every event as JSON",
    )
    return command


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return command(options)
    except Exception as error:
        # What is wrong in a pipeline file has an error of its own; this one is ours.
        with tempfile.NamedTemporaryFile(
            "w", prefix="pipelines-", suffix=".txt", encoding="utf-8", delete=False
        ) as details:
            traceback.print_exc(file=details)
        from pipelines.running.events import complainer

        complainer(options.log_format == "json")(
            f"{options.pipeline} cannot be run: {type(error).__name__}: {error}\n"
            f"details: {details.name}"
        )
        return 2


def command(options: argparse.Namespace) -> int:
    """Does what the command line asks for, and returns the exit code."""
    from pipelines.planning.planner import PlanError
    from pipelines.planning.selection import Selection, plan
    from pipelines.reading.document import SpecError
    from pipelines.reading.spec import load_pipeline, nearest_stage
    from pipelines.running.events import complainer
    from pipelines.running.executor import (
        SPEC_WRONG,
        STAGE_FAILED,
        Asked,
        Executor,
    )
    from pipelines.running.record import name_of_run
    from pipelines.store.runs_dir import RunsDir

    as_json = options.log_format == "json"
    complain = complainer(as_json)

    # The user's own stages are beside the pipeline file, or in the current folder.
    for folder in (str(options.pipeline.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        spec = load_pipeline(options.pipeline, options.set)
    except SpecError as error:
        count = len(error.problems)
        complain(f"{options.pipeline} has {count} problem{'s' if count > 1 else ''}:")
        complain("\n".join(f"  {problem}" for problem in error.problems))
        return SPEC_WRONG
    named = [*options.only, *options.force, *filter(None, [options.start, options.end])]
    wrong = [name for name in named if name not in spec.stages]
    for name in wrong:
        complain(f"{options.pipeline} has no stage {name!r}{nearest_stage(name, spec)}")
    if wrong:
        return SPEC_WRONG
    runs = RunsDir.of(options.runs_dir)
    selection = Selection(options.only, options.start, options.end, frozenset(options.force))
    if options.plan:
        try:
            decisions = plan(spec, runs, selection)
        except PlanError as error:
            complain(str(error))
            return SPEC_WRONG
        except OSError as error:
            complain(f"{runs} cannot be read: {error}")
            return STAGE_FAILED
        width = max(len(decision.stage) for decision in decisions)
        for decision in decisions:
            shown.tell(f"{decision.stage:<{width}}  {decision.action:<6}  {decision.reason}")
        return 0
    name = options.run_id or name_of_run()
    asked = Asked(options.wait, name, as_json)
    return Executor(spec, runs, selection, resume_command(options), asked).run()


def resume_command(options: argparse.Namespace) -> str:
    """This command again, without --force: finished work is not done again."""
    words = ["python", "-m", "pipelines.run", str(options.pipeline)]
    for setting in options.set:
        words += ["--set", setting]
    for name in options.only:
        words += ["--only", name]
    if options.start:
        words += ["--from", options.start]
    if options.end:
        words += ["--to", options.end]
    if options.runs_dir != "runs":
        words += ["--runs-dir", options.runs_dir]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
