"""The command `python -m pipelines.worker`: see `pipelines.running.pool_server`."""

import sys

from pipelines.running.pool_server import main

if __name__ == "__main__":
    sys.exit(main())
