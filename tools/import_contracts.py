"""A contract of import-linter that it does not bring: the standard library and nothing else."""

import sys
from typing import Any

import grimp
from importlinter import Contract, ContractCheck, fields, output


class StandardLibraryOnly(Contract):
    """``source`` and all that it imports, directly or not, stand on the standard library alone."""

    source = fields.ModuleField()

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Return whether it is kept; else the metadata name each import that breaks it."""
        own = {str(name).partition(".")[0] for name in self.session_options["root_packages"]}
        chain = {self.source.name, *graph.find_upstream_modules(self.source.name)}
        known = own | sys.stdlib_module_names
        strangers = [
            f"{module} imports {imported}"
            for module in sorted(chain)
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if imported.partition(".")[0] not in known
        ]
        return ContractCheck(kept=not strangers, metadata={"strangers": strangers})

    def render_broken_contract(self, check: Any) -> None:
        """Print the imports that break it."""
        for line in check.metadata["strangers"]:
            output.print_error(line)
