"""What a build costs beyond three bare forward passes."""
