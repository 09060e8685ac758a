"""python -m shards.verify: checks every rule of the format on a cache."""
