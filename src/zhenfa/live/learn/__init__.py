"""What a run teaches: which law was off, and by how much, so that the next prediction is nearer."""
