"""What each rank of a benchmark runs: a folder a framework."""
