"""Designs: layer programs and unit trees, the unit library, the seed designs."""
