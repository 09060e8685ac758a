"""One command at a time works in a folder: lock files, and who has them."""
