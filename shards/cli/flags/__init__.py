"""Flags that several commands share: as fields of options, and for argparse."""
