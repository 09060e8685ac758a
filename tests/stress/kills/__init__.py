"""The campaign `kills`: SIGKILL at any moment and at every step of every writer; what is flushed, and when."""
