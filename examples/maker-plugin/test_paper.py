"""The conformance suite over the plug-in."""

from __future__ import annotations

from zhenfa_paper import Paper

from zhenfa.testing import MakerSuite


class TestPaper(MakerSuite):
    """Paper cards pass what every maker's must."""

    maker = Paper
