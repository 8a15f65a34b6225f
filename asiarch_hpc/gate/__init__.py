"""The gate: executable checks that a design passes before it may use a GPU."""
