"""The user's module: what is inside its wrappers, a private copy, and how it is run."""
