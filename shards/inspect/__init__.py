"""python -m shards.inspect: shows the content of a cache, and whether it is good for a teacher."""
