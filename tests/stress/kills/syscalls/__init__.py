"""System calls that change files: a run is recorded by them, killed at one of them, and judged by their order."""
