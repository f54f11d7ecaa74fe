"""Parts in files outside mrp: loaded together with their neighbours, and recognised by what their code says.

A run keeps a copy of such files in its folder, so that it can be read again when the originals are gone or changed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mrp.config.errors import ConfigError

SUFFIX = ".py"
KEPT = "code"  # the folder of a run that holds the copies
_files = set[str]()  # the files that were loaded, and their neighbours


def load(path: Path, kind: str) -> ModuleType:
    """Returns the module of a file; it is executed again only when its code, or that of a neighbour, has changed."""
    if not path.is_file():
        raise ConfigError(f"{kind} file '{path}' does not exist; a relative path starts at the current folder")
    code = digest(path)
    # The name tells files of one name in two folders apart: what is sent to a worker process is found again by it.
    return _execute(path, f"mrp_{kind.replace(' ', '_')}_{path.stem}_{code[:8]}", code)


def blamed(error: BaseException) -> str | None:
    """Returns the file outside mrp and its line from which an error came; None where mrp itself was called last."""
    ours = Path(__file__).parent
    called = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in called if frame.filename in _files or ours in Path(frame.filename).parents]
    if not frames or frames[-1].filename not in _files:
        return None
    return f"{frames[-1].filename}, line {frames[-1].lineno}"


def digest(path: Path) -> str:
    """Returns a sha256 of the code of a file and of its neighbours; comments and line breaks do not count."""
    code = {str(file.relative_to(path.parent)): _plain(tree) for file, tree in _trees(path).items()}
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()


def keep(values: Any, folder: Path) -> None:
    """Copies the files that a run's configuration names, and their neighbours, into the run's folder."""
    copies: dict[Path, Path] = {}
    for path in map(Path, _named(values)):
        for file in _trees(path):
            copy = folder / KEPT / file.relative_to(path.parent)
            if copies.setdefault(copy, file) != file:
                raise ConfigError(f"{file}: has the same name as {copies[copy]}, which the run uses too; rename one")
    for copy, file in copies.items():
        if not (copy.exists() and copy.samefile(file)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def located(values: Any, first: Path | None, last: Path | None) -> Any:
    """Returns a configuration in which the files that it names are those to load.

    The copies that the run in the folder `first` keeps come before the originals, which a run's own configuration
    needs; those of the run in the folder `last` are taken where an original is gone.
    """
    replaced = {}
    for name in _named(values):
        folders = [first and first / KEPT, Path(name).parent, last and last / KEPT]
        paths = [folder / Path(name).name for folder in folders if folder is not None]
        replaced[name] = next((str(path) for path in paths if path.is_file()), name)
    return _renamed(values, replaced)


def _named(values: Any) -> Iterator[str]:
    """Yields every file that a configuration names, as a value or as a key."""
    if isinstance(values, str) and values.endswith(SUFFIX):
        yield values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _named(key)
            yield from _named(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _named(value)


def _renamed(values: Any, names: Mapping[str, str]) -> Any:
    if isinstance(values, Mapping):
        return {names.get(key, key): _renamed(value, names) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_renamed(value, names) for value in values]
    return names.get(values, values) if isinstance(values, str) else values


@cache
def _execute(path: Path, name: str, digest: str) -> ModuleType:
    """Runs a file while its folder can be imported from; `digest` makes changed code another entry of the cache."""
    neighbours = [_module_name(neighbour, path.parent) for neighbour in _trees(path).keys() - {path}]
    for taken in sys.modules.keys() & set(neighbours):
        raise ConfigError(f"{path}: imports '{taken}' from its folder, but {sys.modules[taken]} is loaded; rename it")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _files.update(map(str, _trees(path)))
    sys.path.insert(0, str(path.parent))
    # Python would take what it has compiled for current where a file has changed within a second and kept its size.
    for file in _trees(path):
        with suppress(OSError):
            os.unlink(importlib.util.cache_from_source(file))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{blamed(error) or path}: {type(error).__name__}: {error}; mend the file") from error
    finally:
        sys.path.remove(str(path.parent))
        sys.dont_write_bytecode = before
        for neighbour in neighbours:  # they belong to this file alone: another may have neighbours of the same names
            sys.modules.pop(neighbour, None)
    return module


def _module_name(file: Path, folder: Path) -> str:
    return ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def _trees(path: Path) -> dict[Path, ast.Module]:
    """Returns the parsed file, and those of its folder that it imports, directly or through each other."""
    trees: dict[Path, ast.Module] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in trees:
            trees[file] = _parsed(file)
            waiting += _imported(file, trees[file], path.parent)
    return trees


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: is not valid Python: {error.msg}; mend the file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _imported(file: Path, tree: ast.Module, folder: Path) -> Iterator[Path]:
    """Yields the files of a folder that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            start, names = folder, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else folder
            names = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for module in (start.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)):
                yield from (path for path in (module.with_suffix(SUFFIX), module / "__init__.py") if path.is_file())


def _plain(node: Any) -> Any:
    """Returns a parsed file as nested tuples that every version of Python gives alike: what is empty is left out."""
    if isinstance(node, ast.JoinedStr):  # Python 3.12 ends some of them with an empty part
        node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
    if isinstance(node, ast.AST):
        fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
        return type(node).__name__, *fields
    return tuple(map(_plain, node)) if isinstance(node, list) else node
