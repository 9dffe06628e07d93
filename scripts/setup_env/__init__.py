"""Makes `.venv` in the repository: MPI, the frameworks, Horovod for all of them, and hvd_sign; or
`.venv-keras3`: the newest TensorFlow with Keras 3, PyTorch, and hvd_sign, without Horovod.

    python3 -m scripts.setup_env [--environment main|keras3] [--torch SPEC] [--mpi auto|wheel]
                                 [--data]

Every step is skipped while what it was made from is unchanged. Only the standard library is used,
because it runs before anything is installed.
"""
