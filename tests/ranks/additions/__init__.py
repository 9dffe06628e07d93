"""Additions to hvd_sign, each in one file and against its public interface alone."""
