"""The models of a build by role: finding, identifying and loading them."""
