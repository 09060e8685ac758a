"""What all commands share: flags, one-line errors, checks before the work, text for a terminal."""
