"""Tokenises rows, counts what is cut or skipped, and keeps the tokens on disk."""
