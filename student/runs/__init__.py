"""Runs that can be stopped at any time: their identity, their checkpoints, and how they resume."""
