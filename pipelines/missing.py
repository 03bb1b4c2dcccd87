"""The command `python -m pipelines.missing`: see `pipelines.finished.missing`."""

import sys

from pipelines.finished.missing import main

if __name__ == "__main__":
    sys.exit(main())
