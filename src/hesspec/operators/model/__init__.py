"""The user's module: unwrapping, copying, and the modes in which it is run."""
