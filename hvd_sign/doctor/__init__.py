"""``hvd-sign doctor``: tells what is wrong with a set-up before a job does.

It loads nothing itself that may crash or hang: MPI, the engine and frameworks run in processes of
their own, and one that dies becomes a line of the report.
"""
