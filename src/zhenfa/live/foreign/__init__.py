"""Modules that are not the runtime's own: Hugging Face causal language models, and any module of the user's."""
