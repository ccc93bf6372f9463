"""The command line. No arithmetic in it."""
