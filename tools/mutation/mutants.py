"""Print the mutants of Python files, as JSON: one small change each, made by mutmut.

mutmut's own runner chooses tests by function and leaves constants out; these are whole files.
"""

import ast
import difflib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from mutmut.mutation.file_mutation import create_mutations

from tools.mutation.places import place, uses


def mutants(file: Path) -> Iterator[dict[str, Any]]:
    """Yield each mutant: its `name`, the `code`, and the `places` that a test has to run to see it.

    A place is a line, `module:7`; all of a module where that is not known.
    """
    code, known = file.read_text(encoding="utf-8"), Counter()
    tree, before = ast.parse(code), code.splitlines()
    package = {one.stem: ast.parse(one.read_text()) for one in file.parent.glob("*.py")}
    module, mutations, *_ = create_mutations(str(file), code)
    for one in mutations:
        old, new = one.original_node, one.mutated_node
        if isinstance(old, cst.SimpleString) and old.value.lower() == new.value.lower():
            continue  # whoever notices another text notices another case
        changed = module.deep_replace(old, new).code
        after = changed.splitlines()
        steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        first, *_, last = [step for step in steps if step[0] != "equal"] * 2
        was = " ".join(line.strip() for line in before[first[1] : last[2]])
        becomes = " ".join(line.strip() for line in after[first[3] : last[4]])
        names, lines = place(tree.body, first[1] + 1)
        if lines is not None:
            places = [f"{file.stem}:{number}" for number in lines]
        else:
            places = uses(tree, first[1] + 1, package) or [file.stem]
        name = f"{'.'.join([file.stem, *names])}: {was}  ->  {becomes}"
        known[name] += 1
        if known[name] > 1:
            name += f"  ({known[name]})"
        yield {"name": name, "module": file.stem, "places": places, "code": changed}


if __name__ == "__main__":
    json.dump([one for name in sys.argv[1:] for one in mutants(Path(name))], sys.stdout)
