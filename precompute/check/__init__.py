"""python -m precompute.check: does a cache still say what its models say?"""
