"""python -m shards.learn: fits a learned strength, and compares the teachers of a cache."""
