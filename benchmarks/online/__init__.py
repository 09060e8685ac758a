"""Offline against online: a student trained from a cache, and the same student trained with live models."""
