"""The command `python -m pipelines.report`: see `pipelines.finished.site`."""

import sys

from pipelines.finished.site import main

if __name__ == "__main__":
    sys.exit(main())
