"""Docstrings name code by Sphinx roles or by plain backticks; Markdown knows the latter alone."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """Turns ``:class:`Name` `` into `` `Name` `` before a docstring is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
