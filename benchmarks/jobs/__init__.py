"""Jobs of Slurm: their scripts as text, and the queue that they are submitted to."""
