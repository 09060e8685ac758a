"""Forward passes, arithmetic over the whole vocabulary, and the choice of the kept tokens."""
