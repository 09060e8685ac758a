"""Self-contained HTML pages: one file, no request, one look. Other packages bring their own scripts and data."""
