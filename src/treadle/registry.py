"""Names for algorithms and worlds, and the rule by which their dataclasses become JAX trees.

A registered class is a frozen dataclass whose float and tree-valued fields are leaves and whose other fields are
static. So a new learning rate compiles nothing anew, `if self.double` is plain Python, and `vmap` over a stack of
algorithms is a sweep.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from treadle.errors import TreadleError, UnknownName, nearest

T = TypeVar("T")
_STATIC = (int, bool, str, type(None))


class Registry:
    """Classes by name. `package` holds the built-in ones, a file each; looking a name up imports them."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, tuple[type, dict[str, Any]]] = {}

    @typing.dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
    def register(self, name: str, **overrides: Any) -> Callable[[type[T]], type[T]]:
        """A decorator that makes the class a tree and files it under `name`, with other defaults if given."""

        def decorate(cls: type[T]) -> type[T]:
            cls = as_tree(cls)
            known = self._entries.get(name)
            if known is not None and _full_name(known[0]) != _full_name(cls):
                raise TreadleError(
                    f"two {self.kind}s want the name '{name}': {_full_name(known[0])} and {_full_name(cls)}. "
                    "Give one of them another name."
                )
            self._entries[name] = (cls, overrides)
            if "name" not in cls.__dict__:
                cls.name = name  # type: ignore[attr-defined]
            return cls

        return decorate

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._entries)

    def entries(self) -> dict[str, tuple[type, dict[str, Any]]]:
        """Name to (class, its overridden defaults), in order of name."""
        return {name: self._entries[name] for name in self.names()}

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._entries

    def find(self, name: str, also: list[str] | None = None) -> tuple[type, dict[str, Any]]:
        """The class and its overridden defaults. Raises `UnknownName` with the nearest name (also among `also`)."""
        if name not in self:
            known = self.names()
            raise UnknownName(
                f"there is no {self.kind} '{name}'.{nearest(name, known + (also or []))} "
                f"Treadle has: {', '.join(known)}. Your own comes in with --import FILE.py."
            )
        return self._entries[name]

    def make(self, name: str, **fields: Any) -> Any:
        """An instance of what `name` stands for. Raises `UnknownName`."""
        cls, overrides = self.find(name)
        return cls(**{**overrides, **fields})

    @functools.cache  # noqa: B019 - one registry of each kind lives as long as the process
    def _discover(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_static(annotation: Any) -> bool:
    """Whether a field of this type is part of the program (static) rather than data (a leaf)."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return all(is_static(a) for a in typing.get_args(annotation))
    if origin in (Literal, tuple):
        return True
    return annotation in _STATIC


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def as_tree(cls: type[T]) -> type[T]:
    """The class as a frozen, keyword-only dataclass that JAX treats as a tree (once, however often it is called)."""
    if "__treadle_tree__" in cls.__dict__:
        return cls
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    static = [name for name in names if is_static(hints[name])]
    leaves = [name for name in names if name not in static]
    _register_tree(cls, leaves, static)
    cls.__treadle_tree__ = True  # type: ignore[attr-defined]
    return cls


def _register_tree(cls: type, leaves: list[str], static: list[str]) -> None:
    """What `jax.tree_util.register_dataclass` does, but for one thing: with that (in JAX 0.10) trees of two classes
    compare equal where their fields do, and once in a while a program compiled for one class is run for the other."""
    keys = [jax.tree_util.GetAttrKey(name) for name in leaves]

    def flatten(x: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(x, name) for name in leaves], tuple(getattr(x, name) for name in static)

    def flatten_with_keys(x: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, values = flatten(x)
        return list(zip(keys, children, strict=True)), values

    def unflatten(values: tuple[Any, ...], children: Any) -> Any:
        return cls(**dict(zip(static, values, strict=True)), **dict(zip(leaves, children, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def as_float32(tree: T) -> T:
    """Python and NumPy numbers in a tree as float32 arrays, so that a changed value never changes a type: the user
    may write `gamma=1`."""

    def cast(leaf):
        is_number = isinstance(leaf, (int, float)) and not isinstance(leaf, bool)
        return jnp.asarray(leaf, jnp.float32) if is_number else leaf

    return jax.tree.map(cast, tree)


def import_file(path: str | Path) -> types.ModuleType:
    """Run a user's Python file, so that what it registers is found like the built-in ones.

    Raises `TreadleError` when the file is missing or fails to import.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise TreadleError(f"--import was given {path}, and there is no such file.")
    name = f"treadle_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TreadleError(f"--import was given {path}, which is not a Python file: its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except TreadleError:
        raise
    except Exception as error:
        del sys.modules[name]
        where = _last_line_in(error, file)
        raise TreadleError(f"{path} could not be imported{where}: {type(error).__name__}: {error}.") from error
    _imported[str(file)] = None
    return module


def imported_files() -> list[str]:
    """The user's files that were run, in their order, by their whole paths: what another process needs too."""
    return list(_imported)


_imported: dict[str, None] = {}


def _last_line_in(error: BaseException, file: Path) -> str:
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


algorithms = Registry("algorithm", "treadle.algorithms")
environments = Registry("environment", "treadle.environments")
