"""Changes of a Python text at the places of its syntax nodes: everything else stays as it was, byte for byte."""

from __future__ import annotations

import ast
import re
from typing import Protocol

_LINE_END = re.compile(rb"\r\n|\r|\n")


class Place(Protocol):
    """What has a place in a text: statements, expressions, arguments, aliases."""

    lineno: int
    col_offset: int
    end_lineno: int | None
    end_col_offset: int | None


class Edits:
    """Replacements in one text, collected and then applied together. Those that overlap an earlier one are left out."""

    def __init__(self, source: str) -> None:
        self._data = source.encode("utf-8", errors="surrogatepass")
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(self._data))]
        self._changes: list[tuple[int, int, bytes]] = []

    def __bool__(self) -> bool:
        return bool(self._changes)

    def start(self, node: Place) -> int:
        """Byte offset at which a node starts."""
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: Place) -> int:
        """Byte offset behind a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def line(self, node: Place) -> int:
        """Byte offset of the line in which a node, or the first decorator of a definition, starts."""
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        return self._starts[min([node.lineno, *(item.lineno for item in decorators)]) - 1]

    def next_line(self, node: Place) -> int:
        """Byte offset of the line behind the one in which a node ends."""
        assert node.end_lineno is not None
        return self._starts[node.end_lineno] if node.end_lineno < len(self._starts) else len(self._data)

    def indent(self, node: Place) -> str:
        """What stands before a node in its line, as white space; "" where that is not white space alone."""
        before = self._data[self._starts[node.lineno - 1] : self.start(node)].decode("utf-8", errors="replace")
        return "" if before.strip() else before

    def begins_line(self, node: Place) -> bool:
        """Whether only white space stands before a node in its line."""
        return not self._data[self._starts[node.lineno - 1] : self.start(node)].strip()

    def text(self, node: Place) -> str:
        """The text of a node as written."""
        return self._data[self.start(node) : self.end(node)].decode("utf-8", errors="surrogatepass")

    def lines(self, node: Place) -> str:
        """The whole lines of a node, with its decorators, without the last line's end."""
        return self._data[self.line(node) : self.next_line(node)].decode("utf-8", errors="surrogatepass").rstrip("\r\n")

    def replace(self, node: Place, text: str) -> bool:
        """Puts `text` in the place of a node; False where an earlier change is in the way."""
        return self.put(self.start(node), self.end(node), text)

    def insert(self, offset: int, text: str) -> bool:
        """Puts `text` before the byte at `offset`."""
        return self.put(offset, offset, text)

    def put(self, start: int, end: int, text: str) -> bool:
        """Puts `text` in the place of the bytes from `start` to `end`; False where an earlier change overlaps."""
        if any(start < other_end and other < end for other, other_end, _ in self._changes):
            return False
        if any(other < start < other_end or start < other < end for other, other_end, _ in self._changes):
            return False
        self._changes.append((start, end, text.encode("utf-8", errors="surrogatepass")))
        return True

    def apply(self) -> str:
        """The text with all changes made; insertions at one place stand in the order in which they were asked for."""
        pieces: list[bytes] = []
        position = 0
        for start, end, text in sorted(self._changes, key=lambda change: (change[0], change[1])):
            pieces += [self._data[position:start], text]
            position = end
        return b"".join([*pieces, self._data[position:]]).decode("utf-8", errors="surrogatepass")
