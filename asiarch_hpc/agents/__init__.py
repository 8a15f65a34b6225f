"""Proposers: whoever turns parents and references into a new design."""
