"""Batches of any structure: their tensors, samples and content."""
