"""Traced graphs of products, and their rewritings, none of which changes a result."""
