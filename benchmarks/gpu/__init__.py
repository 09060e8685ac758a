"""What build and student cost on a GPU, beside what they could cost at least."""
