"""The build: reads models and data, writes a cache."""
