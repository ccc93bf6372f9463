"""Real time: cards, engines, workers, emulated cards, checkpoints."""
