"""Series of sensor readings."""
