"""What a run is judged by: quality gates, and the baseline run."""
