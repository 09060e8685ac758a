"""What a student is trained on: cached responses, their order, and micro-batches of them as tensors."""
