"""Have the generated Kubernetes clients load a class when it is used, not 700 when they start.

    python lazy_clients.py SITE_PACKAGES

Each `__init__.py` of GENERATED imports a module for each API and each model. A worker uses 20 of
them; the others cost each of its starts 0.5 s of the processor and 40 MiB (of 2.1 s and 164 MiB
that `airflow`, its command line and the operator of pods take to import). The files are rewritten
(PEP 562): every name, and every submodule as an attribute, is there as before.
"""

import ast
import compileall
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

GENERATED = [
    f"{package}/{directory}"
    for package in ("kubernetes", "kubernetes_asyncio")
    for directory in ("client", "client/api", "client/models")
]
ON_USE = """

def __getattr__(name):
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            value = import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOMES})


__all__ = sorted(_HOMES)
"""


def on_use(source: str) -> str:
    """Return the source of a generated `__init__.py` that imports nothing before it is asked."""
    homes: dict[str, str] = {}
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            homes |= {name.name: node.module for name in node.names}
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "".join([*lines, f"\n_HOMES = {homes!r}\n", ON_USE])


def main(packages: Path) -> int:
    """Rewrite and compile the files below a directory of packages."""
    for directory in GENERATED:
        file = packages / directory / "__init__.py"
        file.write_text(on_use(file.read_text()))
        if not compileall.compile_file(
            file, force=True, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
        ):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
