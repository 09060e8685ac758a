"""python -m precompute.build: three models and preference data -> a cache."""
