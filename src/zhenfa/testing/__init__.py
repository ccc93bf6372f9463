"""Tests that a maker's plug-in inherits, and that the built-in ones pass.

::

    from zhenfa.testing import MakerSuite
    from zhenfa_paper import Paper

    class TestPaper(MakerSuite):
        maker = Paper

What needs a card runs in a process of its own on the card where there is one, and is skipped with the reason elsewhere.
Needs pytest.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("zhenfa.testing.maker")

from zhenfa.testing.maker import MakerSuite  # noqa: E402

__all__ = ["MakerSuite"]
