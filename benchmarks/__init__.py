"""Benchmarks: what the vote costs and gains, beside what one would run instead."""
