"""The laws: one physical quantity per function, on floats or NumPy arrays alike.

Every law takes numbers in base units (bytes, seconds, FLOP, FLOP/s, B/s, W, J) and broadcasts its arguments, so the
same code serves one plan and a million. Its docstring says what it counts and what it omits, and names the paper and
the equation. Constants that nobody has published are named at the top of their module and marked *assumed*.
"""
