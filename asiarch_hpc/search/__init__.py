"""Search: population, pool, fitness and policies. Pure functions: no I/O, no clock, rng passed in."""
