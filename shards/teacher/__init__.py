"""Teachers: how they are composed from a cache, their divergences, and how far to trust them."""
