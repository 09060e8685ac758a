"""A survey of a cache: rewarded and punished tokens and words, figures of every row, bytes by column."""
