"""What the cache's values cost in bytes, seconds and accuracy, compared with other ways to store the same log-probs."""
