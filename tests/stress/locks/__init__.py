"""locks: several processes want one folder; some are killed, suspended, or lose the folder under their feet."""
