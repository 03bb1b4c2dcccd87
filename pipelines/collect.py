"""The command `python -m pipelines.collect`: see `pipelines.finished.collect`."""

import sys

from pipelines.finished.collect import main

if __name__ == "__main__":
    sys.exit(main())
