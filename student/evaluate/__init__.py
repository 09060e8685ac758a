"""python -m student.evaluate: measures trained models on held-out pairs and by their own samples."""
