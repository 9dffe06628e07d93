"""The package's version, and the version that the compiled kernels must carry."""

__version__ = "0.1.0"
