"""What is watched while a student trains: its figures, what each step trained on, and when a run must stop."""
