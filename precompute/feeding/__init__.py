"""Keeps the device at work: input in time, results without waiting, writing on threads, and where the time goes."""
