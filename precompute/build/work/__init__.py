"""What a build does with its models, on one device: measurements, then shards."""
