"""What the cache's values cost in bytes, seconds and exactness, beside other ways to store the same log-probs."""
