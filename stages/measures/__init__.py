"""Measures of segments that add up: metrics, their statistics, intervals and paired tests."""
