"""Zhenfa: many cards, many makers, one machine."""

__version__ = "0.1.0"
