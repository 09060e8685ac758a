"""How fast data become tokens, beside the tokenizer alone; how long it takes to see that a build is there."""
