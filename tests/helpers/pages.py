"""The code blocks of the pages for people."""

import re
from typing import NamedTuple

from mlctl.base.paths import ROOT


class Block(NamedTuple):
    """What stands between two fences, and the number of the line before it."""

    text: str
    line: int


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the blocks in these languages of a page, which is named from the checkout's root."""
    content = (ROOT / page).read_text()
    fenced = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return [
        Block(found[1], content[: found.start()].count("\n") + 1)
        for found in re.finditer(fenced, content, re.DOTALL | re.MULTILINE)
    ]
