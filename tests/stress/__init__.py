"""make stress: campaigns that try to break the promises of docs/reliability.md, counted, at full size and in slices."""
