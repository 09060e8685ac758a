"""What is on disk: columns, values, plan, manifest, index; writing and reading. Independent of teachers."""
