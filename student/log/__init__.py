"""The log of a run: what each figure means, the lines that a person reads, and curves. Needs no torch."""
