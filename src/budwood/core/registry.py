"""Names to things: one registry a kind, filled by the decorator above each member's own file."""

import difflib
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from .errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """All members of one kind. The package's modules are imported at the first question, not before.

    A third party adds a member by a module named in the entry point group `budwood.<kind>s`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._members: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        def keep(member: T) -> T:
            if self._members.get(name, member) is not member:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._members[name] = member
            return member

        return keep

    def names(self) -> list[str]:
        self._load()
        return sorted(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._members

    def get(self, name: str) -> T:
        """The member called `name`; a UserError with the nearest names where there is none."""
        self._load()
        if name not in self._members:
            raise UserError(f"no {self.kind} called {name!r}; {nearest(name, self.names())}")
        return self._members[name]

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in importlib.metadata.entry_points(group=f"budwood.{self.kind}s"):
            entry.load()
        self._loaded = True  # only now: after a failed import the next question fails too, and answers no part


def nearest(name: str, known: list[str]) -> str:
    """A hint that names what the user may have meant (all of them where they are few)."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"


methods: Registry[Any] = Registry("method", "budwood.prune")
tasks: Registry[Any] = Registry("task", "budwood.tasks")
sources: Registry[Any] = Registry("source", "budwood.models")
backends: Registry[Any] = Registry("backend", "budwood.bench")
