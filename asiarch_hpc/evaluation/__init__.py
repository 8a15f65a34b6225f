"""Evaluation of trained weights through lm-eval, offline, in a process that the candidate cannot edit."""
