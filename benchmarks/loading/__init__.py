"""How fast a cache is read, decoded and composed."""
