"""How responses become record batches and log-probs small integers, and back."""
