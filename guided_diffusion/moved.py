"""Old names of moved code: hooks of upstream's modules, modules of an earlier version."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType


class Facade(ModuleType):
    """A module of upstream's; assigning to one of its names acts in all modules that have the same object by that name.

    Upstream's scripts and forks set such hooks: dist_util.GPUS_PER_NODE, train_util.INITIAL_LOG_LOSS_SCALE.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            before, package = vars(self)[name], f"{__package__}."
            for module in [module for key, module in sys.modules.items() if key.startswith(package)]:
                if name in vars(module) and vars(module)[name] is before:
                    vars(module)[name] = value
        super().__setattr__(name, value)


def forward_assignments(facade: str) -> None:
    """Make a module a `Facade`."""
    sys.modules[facade].__class__ = Facade


class OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An importer of modules under their old names, with a DeprecationWarning; also for `python -m OLD`.

    :param names: {old: new}, both dotted; the modules within a package that moved are found by it.
    """

    def __init__(self, names: dict[str, str]):
        self.names = names

    def install(self) -> None:
        """Add this finder after all others."""
        sys.meta_path.append(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = self._new(fullname)
        found = new and importlib.util.find_spec(new)
        if not found:
            return None
        package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, self, origin=new, loader_state=found, is_package=package)

    def _new(self, fullname: str) -> str | None:
        for old, new in self.names.items():
            if fullname == old or fullname.startswith(f"{old}."):
                return new + fullname.removeprefix(old)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {spec.origin}", DeprecationWarning, stacklevel=2)
        return importlib.import_module(spec.origin)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back; it is executed already."""
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str):
        """Return a program that runs the new module, for `python -m OLD`."""
        program = f"import runpy; runpy.run_module({self._new(fullname)!r}, run_name='__main__', alter_sys=True)"
        return compile(program, fullname, "exec")
