"""What a run is held against: quality gates, and the baseline run."""
