"""Horovod's face on our own MPI runtime, for jobs in which Horovod itself is not installed.

Ranks, process sets and named collectives of numpy arrays; bindings translate their tensors.
"""
