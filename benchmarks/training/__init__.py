"""Training as a benchmark, without any framework."""
