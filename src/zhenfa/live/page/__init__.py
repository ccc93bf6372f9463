"""The report of a run as one HTML file that needs nothing else: no script, no request, no font from elsewhere."""

from zhenfa.live.page.page import page_of, write_page

__all__ = ["page_of", "write_page"]
