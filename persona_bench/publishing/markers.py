"""Made parts of pages that people write: between two comments, replaced whole, and nothing else touched."""

from __future__ import annotations

import re

from persona_bench.errors import DataError


def between(name: str) -> re.Pattern[str]:
    """What stands between a part's two comments, as group 1."""
    return re.compile(rf"(?<=<!-- made: {name} -->\n)(.*?)(?=<!-- end: {name} -->)", re.DOTALL)


def put(page: str, name: str, text: str, where: str) -> str:
    """The page with a made part replaced.

    Args:
        page: the page's text.
        name: of the part.
        text: what it says; Markdown.
        where: the page's name, for the error.

    Raises:
        DataError: the page does not have the two comments, once each.
    """
    pattern = between(name)
    if len(pattern.findall(page)) != 1:
        raise DataError(f"{where} needs the lines `<!-- made: {name} -->` and `<!-- end: {name} -->`, once each")
    return pattern.sub(lambda _: f"{text.strip()}\n", page)


def without_made(page: str) -> str:
    """What people wrote of a page."""
    return re.sub(r"<!-- made: (\w+) -->.*?<!-- end: \1 -->", "", page, flags=re.DOTALL)
