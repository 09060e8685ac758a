"""Hostile files: no crash, hang, memory blow-up, code execution or path escape."""
