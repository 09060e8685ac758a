"""Pairs of responses in a cache, and the strength that is fitted to them (`fit`)."""

from shards.preferences.pairs import fit

__all__ = ["fit"]
