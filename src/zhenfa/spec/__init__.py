"""The four nouns and what surrounds them, as typed documents."""
