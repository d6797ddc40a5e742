"""Where in a Python file a line lies."""

import ast
from typing import Any


def place(
    body: list[Any], line: int, names: tuple[str, ...] = (), inside: bool = False
) -> tuple[tuple[str, ...], list[int] | None]:
    """Return the names of what a line lies in, and the lines of its statement, or of its head."""
    for node in body:
        if not node.lineno <= line <= node.end_lineno:
            continue
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
        parts += getattr(node, "handlers", [])
        below = any(part.lineno <= line <= part.end_lineno for part in parts)
        is_function = isinstance(node, ast.FunctionDef)
        if is_function or isinstance(node, ast.ClassDef):
            names += (node.name,)
            if not below:  # defaults of arguments, decorators
                return names, None
        if below:
            return place(parts, line, names, inside or is_function)
        end = min((part.lineno - 1 for part in parts), default=node.end_lineno)
        return names, list(range(node.lineno, max(end, node.lineno) + 1)) if inside else None
    return names, None


def uses(tree: ast.Module, line: int, package: dict[str, ast.Module]) -> list[str]:
    """Return where functions use the constant that a line sets, as `module:7`.

    None are returned if there is no constant, or it is also used while a module is imported.
    """
    (node,) = [node for node in tree.body if node.lineno <= line <= node.end_lineno] or [None]
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if not isinstance(target, ast.Name):
        return []
    found: list[str] = []
    for module, other in package.items():
        for name in ast.walk(other):
            is_name = isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)
            is_it = is_name and name.id == target.id
            if is_it or (isinstance(name, ast.Attribute) and name.attr == target.id):
                _, lines = place(other.body, name.lineno)
                if lines is None:
                    return []
                found += [f"{module}:{number}" for number in lines]
    return found
