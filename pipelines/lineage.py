"""The command `python -m pipelines.lineage`: see `pipelines.finished.lineage`."""

import sys

from pipelines.finished.lineage import main

if __name__ == "__main__":
    sys.exit(main())
