"""How fast data are tokenised, compared with the tokenizer alone; and how fast a finished build is recognised."""
