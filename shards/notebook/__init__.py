"""What a notebook shows: a row as coloured text, tables for pandas and Polars, and plots. Nothing here reads files."""
