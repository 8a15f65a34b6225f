"""Autonomous discovery of language-model architectures on HPC clusters."""

__version__ = "0.1.0"
