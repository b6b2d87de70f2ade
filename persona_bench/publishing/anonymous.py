"""Takes the maker's machine out of texts: paths within the run become relative to it, others keep their last part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# `weights+adapter`: where both are paths, each is one.
_PART = r"(?:[^\s/\\,;:=+\"'`|()\[\]{}<>]|\+(?!/))+"
# No fraction, address or `a/b`: what stands before a path is no part of a word, of an address or of another path.
_START = r"(?:file://|(?<=persona/)|(?<![\w.:/~>)\]-]))"
_ABSOLUTE = re.compile(rf"{_START}(?:~/|/{_PART}/)(?:{_PART}/?)*|(?<!\w)[A-Za-z]:\\(?:{_PART}\\?)+")
_SECRET = re.compile(r"api_?key|secret|password|token$|credential", re.IGNORECASE)


class Anonymous:
    """What a run's texts become.

    Args:
        folder: of the run; texts may name it as it was called where the run was made: it is known by its last two
            parts, <model>/<preset>.
    """

    def __init__(self, folder: Path) -> None:
        model, preset = folder.resolve().parts[-2:]
        inside = rf"(?:{_PART}/)*{re.escape(model)}/{re.escape(preset)}/"
        self._inside = re.compile(rf"{_START}/{inside}(?={_PART})")

    def text(self, text: str) -> str:
        """A text without absolute paths."""
        return _ABSOLUTE.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], self._inside.sub("", text))

    def value(self, value: Any) -> Any:
        """The same for every text within a value of JSON; what is called a key or token is left out."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): self.value(part) for key, part in value.items() if not _SECRET.search(str(key))
            }
        return [self.value(part) for part in value] if isinstance(value, list | tuple) else value
