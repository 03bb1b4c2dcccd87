"""The command `python -m pipelines.trace`: see `pipelines.finished.traces`."""

import sys

from pipelines.finished.traces import main

if __name__ == "__main__":
    sys.exit(main())
