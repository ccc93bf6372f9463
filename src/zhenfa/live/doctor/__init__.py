"""What a run needs, and whether it is here: checks of the host, of makers' software, and of a job's own messages."""
