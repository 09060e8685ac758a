"""python -m precompute.teachers: trains dpo and reverse from a reference and preference pairs."""
