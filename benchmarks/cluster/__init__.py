"""python -m benchmarks.cluster: the same bytes from one process, torchrun and Ray, whatever is killed."""
