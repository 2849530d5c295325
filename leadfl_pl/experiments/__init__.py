"""Experiments as data: many settings times many seeds, run, and reported."""
