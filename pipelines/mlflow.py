"""The command `python -m pipelines.mlflow`: see `pipelines.finished.mlflow`."""

import sys

from pipelines.finished.mlflow import main

if __name__ == "__main__":
    sys.exit(main())
