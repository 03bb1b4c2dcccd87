"""Series of readings of sensors."""
