"""The experiment store: a filesystem tree of JSON and Zarr under `results/` (design section 3)."""
