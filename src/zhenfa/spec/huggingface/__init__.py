"""Hugging Face ``config.json`` in, a model document out."""

from __future__ import annotations

from zhenfa.spec.huggingface.importer import from_huggingface, known_types

__all__ = ["from_huggingface", "known_types"]
