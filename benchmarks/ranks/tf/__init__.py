"""What each rank runs, for TensorFlow."""
