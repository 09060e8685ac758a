"""Ray: workers on the machines of a cluster, what they share, and the tasks that are handed to them."""
