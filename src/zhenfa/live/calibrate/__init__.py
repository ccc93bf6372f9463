"""Short micro-benchmarks of the device that is present, and the machine file that they make."""
