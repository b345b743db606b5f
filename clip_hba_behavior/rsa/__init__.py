"""Representational similarity: RDMs and their rank correlation."""
