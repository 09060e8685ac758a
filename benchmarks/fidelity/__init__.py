"""How far a sparse, cached teacher is from the dense one of live models."""
