"""Damage to a finished cache and to one that is begun: every bit, pages, lengths, whole files, every field."""
