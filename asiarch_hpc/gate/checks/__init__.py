"""The checks of a design that runs: each yields findings on a specimen."""
