"""What is done with finished runs: the site over all of them, collection, MLflow."""
