"""The ways of exchanging gradients that are compared."""
