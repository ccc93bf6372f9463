"""Facts as packaged data: accelerators, links, supernodes, machines, models; each number with its source."""
