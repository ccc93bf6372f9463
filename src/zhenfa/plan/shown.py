"""What answers of the planner have in common: they print themselves as a page, as HTML in a notebook, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from zhenfa.plan.answer import Answer
    from zhenfa.plan.documents import Plans
    from zhenfa.plan.serving.answer import ServingAnswer


class Shown:
    """An answer that can be shown."""

    def to_data(self) -> dict[str, Any]:
        """Return what ``zhenfa plan --json`` prints, as data: the document ``zhenfa.plans/1``."""
        return _document(self).to_data()

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return what ``zhenfa plan --json`` prints."""
        return json.dumps(self.to_data(), indent=indent, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        from zhenfa.plan.notebook import as_text

        return as_text(cast("Answer | ServingAnswer", self))

    def _repr_html_(self) -> str:
        from zhenfa.plan.notebook import as_html

        return as_html(cast("Answer | ServingAnswer", self))


def _document(answer: Shown) -> Plans:
    from zhenfa.plan.answer import Answer

    if isinstance(answer, Answer):
        from zhenfa.plan.documents import to_document

        return to_document(answer)
    from zhenfa.plan.serving.documents import to_document as to_serving_document

    return to_serving_document(cast("ServingAnswer", answer))
