"""Traced graphs of products, and rewritings that do not change their results."""
