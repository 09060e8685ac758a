"""python -m shards.pipeline: all commands of a run, from one file."""
