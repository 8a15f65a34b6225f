"""Sequence-mixing operations. They import torch and triton only, never asiarch_hpc."""
