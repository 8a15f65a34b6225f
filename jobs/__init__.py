"""Thin, picklable entry points of the jobs that the controller submits."""
