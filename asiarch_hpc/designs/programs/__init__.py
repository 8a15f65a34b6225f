"""Seed designs as layer programs in the published contract; read as text, never imported."""
