"""Runs the cases of the zoo: measures, compares with the truth, judges, and writes the page."""
