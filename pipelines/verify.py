"""The command `python -m pipelines.verify`: see `pipelines.finished.verify`."""

import sys

from pipelines.finished.verify import main

if __name__ == "__main__":
    sys.exit(main())
