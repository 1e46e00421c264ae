"""Benchmarks: ratios of speeds measured in turn, on data made from a key."""
