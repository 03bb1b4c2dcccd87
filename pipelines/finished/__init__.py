"""Tools for finished runs: the site of all runs, garbage collection, MLflow."""
