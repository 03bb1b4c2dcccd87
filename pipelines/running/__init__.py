"""The run itself: executor, Beam jobs and their workers, events and progress bars."""
