"""What values a row may hold: the rules about a row, and how a reader checks them at little cost."""
