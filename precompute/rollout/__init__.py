"""python -m precompute.rollout: samples a model's own responses to prompts."""
