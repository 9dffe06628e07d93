"""What each rank runs, for PyTorch."""
