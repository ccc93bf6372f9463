"""Enumerate, bound, rank and explain layouts."""
