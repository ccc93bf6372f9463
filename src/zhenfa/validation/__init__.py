r"""Laws against measurements: rows of published or own measurements in, predictions beside them out.

May know ``estimate`` and below. Each kind of row has a module that turns one record into :class:`~.outcome.Outcome`\ s:
:mod:`.training`, :mod:`.serving`, :mod:`.operator`, :mod:`.fabric`, :mod:`.reliability`, :mod:`.energy`.
"""
