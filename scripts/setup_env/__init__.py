"""Makes `.venv` in the repository: MPI, the frameworks, Horovod for all of them, and hvd_sign.

    python3 -m scripts.setup_env [--torch SPEC] [--mpi auto|wheel] [--data]

Every step is skipped while what it was made from is unchanged. Only the standard library is used,
because it runs before anything is installed.
"""
