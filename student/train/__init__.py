"""python -m student.train: trains a student on a cache."""
