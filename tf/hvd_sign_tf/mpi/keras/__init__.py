"""What ``horovod.tensorflow.keras`` has in modules of their own."""
