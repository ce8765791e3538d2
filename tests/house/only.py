"""A kind of import-linter contract."""

import sys
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class Only(Contract):
    """The modules of one room import each other, the standard library and what is named, nothing else.

    A list of what is allowed, where import-linter's own `forbidden` needs one of all that is not.
    """

    type_name = "only"

    room: Any = fields.StringField()  # import-linter gives each field its parsed value
    may_import: Any = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        allowed = {self.room, *self.may_import, *sys.stdlib_module_names}
        modules = {self.room, *graph.find_descendants(self.room)} if self.room in graph.modules else set()
        illegal = [
            f"{module} -> {imported}"
            for module in sorted(modules)
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if not any(imported == name or imported.startswith(f"{name}.") for name in allowed)
        ]
        return ContractCheck(kept=not illegal, metadata={"illegal": illegal})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["illegal"]:
            output.print_error(f"- {line}", bold=False)
        output.new_line()
