"""Benchmarks: programs run in turn, on data made from a key, and the ratios of their speeds."""
