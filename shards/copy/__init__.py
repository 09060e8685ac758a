"""python -m shards.copy: a cache from a folder, bucket or hub repository to another."""
