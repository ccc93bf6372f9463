"""One physical quantity per function, on floats or NumPy arrays alike."""
