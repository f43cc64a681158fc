"""Lazy imports of a package's names."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def imported_on_demand(package: str, **modules: tuple[str, ...]) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package whose modules are slow to import, like torch.

    Args:
        modules: the names that each module of the package has.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return attribute
