"""The loss: sparse divergences between student and teacher, and the forward pass around them."""
