"""What a cache of millions of rows costs: on paper, and measured on caches without content."""
