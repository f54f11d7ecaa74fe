"""The floors of the house: who may import whom, and which third party is let in where.

Imports go downwards only, and siblings on one floor never import each other, with these exceptions, none of which may
form a circle: an objective may use what objectives share (modules named with an underscore) and the registry (the
package itself), which in turn may know every objective; the modules of one of the ROOMS below may use each other. What
stands under `if TYPE_CHECKING:` never runs and does not count; what stands inside a function does.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A name stands for what is beneath it too; `mrp` itself is `__init__`.
FLOORS = (
    "config faults batch models.masking train.schedules data.order data.manifest train.sealed train.tensors",
    "models train.mixing train.memory data.store data.decode train.writer",
    "objectives data train.step train.optim train.checkpoint train.guard train.tracker"
    " train.alarm train.cost train.folder train.progress train.signals train.spikes train.watchdog",
    "evaluate interop",
    "train.init train.validate train.average",
    "run",
    "train.start train.watch train.wrapping train.judge train.incident imported",
    "train.examine train.state",
    "train.loop train.replay report probing export_features",
    "api",
    "exchange lab",
    "cli verbs launch cluster __main__ __init__",
    "tools",
)
ROOMS = (
    "config faults",
    "models",
    "data",
    "evaluate",
    "interop",
    "report",
    "lab",
    "cli verbs launch cluster __main__",
)
THIRD_PARTIES = {
    "accelerate": "train.loop train.start train.watch train.examine train.state train.wrapping train.incident"
    " evaluate launch",
    "huggingface_hub": "interop",
    "matplotlib": "report lab",
    "onnx": "interop",
    "onnxruntime": "interop",
    "transformers": "interop",
    "tensorboard": "train.tracker",
    "submitit": "cluster",
    "timm": "models interop",
    "torch.utils.tensorboard": "train.tracker",
    "wandb": "train.tracker",
    "webdataset": "data.shards",
}
HEAVY = ("torch", "torchvision", "timm", "accelerate", "matplotlib", "sklearn", "wandb", "webdataset")


class Import(NamedTuple):
    importer: str
    target: str
    place: str  # file:line


def short(module: str) -> str:
    return "__init__" if module == "mrp" else module.removeprefix("mrp.")


def within(module: str, names: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in names.split())


def floor(module: str) -> int | None:
    """The floor of the longest name that fits; a package's own `__init__` stands as low as its lowest module."""
    name = short(module)
    named = [(word, level) for level, line in enumerate(FLOORS) for word in line.split()]
    beneath = [level for word, level in named if within(word, name)]
    above = [(len(word), level) for word, level in named if within(name, word)]
    return min(beneath) if beneath else max(above)[1] if above else None


def modules() -> dict[str, Path]:
    paths = sorted([*(ROOT / "mrp").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def running(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that can run."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    guarded = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in node.orelse if isinstance(node, ast.If) and guarded else ast.iter_child_nodes(node):
        yield from running(child)


def imports(source: str, module: str, place: str, is_package: bool = False) -> Iterator[Import]:
    package = module if is_package else module.rpartition(".")[0]
    for node in running(ast.parse(source)):
        prefix = (
            "" if isinstance(node, ast.Import) else resolve_name("." * node.level + (node.module or ""), package) + "."
        )
        for alias in node.names:
            yield Import(module, f"{prefix}{alias.name}", f"{place}:{node.lineno}")


def all_imports() -> list[Import]:
    return [
        found
        for module, path in modules().items()
        for found in imports(path.read_text("utf-8"), module, str(path.relative_to(ROOT)), path.name == "__init__.py")
    ]


def owner(target: str, known: dict[str, Path]) -> str | None:
    """The module of ours that an imported name belongs to; anyone may read `mrp` itself and its `__version__`."""
    if target in ("mrp", "mrp.__version__"):
        return None
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target or None


def same_room(importer: str, target: str) -> bool:
    if within(importer, "objectives") and within(target, "objectives"):
        return importer == "objectives" or target == "objectives" or target.startswith("objectives._")
    return any(within(importer, room) and within(target, room) for room in ROOMS)


def floor_rule(importer: str, target: str) -> str | None:
    """The rule that an import breaks."""
    here, there = floor(importer), floor(target)
    if here is None or there is None or there < here:
        return None  # a module without a floor has a test of its own
    if there > here:
        return f"floor {here} imports floor {there}: imports go downwards only"
    if importer == target or same_room(short(importer), short(target)):
        return None
    return f"both stand on floor {here}: siblings never import each other"


def third_party_rule(importer: str, target: str) -> str | None:
    for name, rooms in THIRD_PARTIES.items():
        if within(target, name) and not within(short(importer), f"{rooms} tools"):
            return f"{name} stays in {', '.join(rooms.split())}"
    if importer.startswith("mrp") and within(target, "tests tools"):
        return "mrp imports neither its tests nor its tools"
    return None


def test_every_module_has_a_floor() -> None:
    homeless = [str(path.relative_to(ROOT)) for module, path in modules().items() if floor(module) is None]
    assert not homeless, f"name these in FLOORS, on the lowest floor that fits: {', '.join(homeless)}"


def test_imports_go_downwards() -> None:
    known, broken = modules(), []
    for importer, target, place in all_imports():
        module = owner(target, known)
        rule = floor_rule(importer, module) if module else None
        if rule:
            broken.append(f"{place}: {importer} imports {module}: {rule}")
    assert not broken, "\n".join(dict.fromkeys(broken))


def test_neighbours_form_no_circle() -> None:
    known = modules()
    graph: dict[str, set[str]] = {module: set() for module in known}
    for importer, target, _ in all_imports():
        module = owner(target, known)
        if module and module != importer and floor(module) == floor(importer):
            graph[importer].add(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' <- '.join(error.args[1])}")


def test_third_parties_stay_in_their_room() -> None:
    rules = [(found, third_party_rule(found.importer, found.target)) for found in all_imports()]
    broken = [f"{found.place}: {found.importer} imports {found.target}: {rule}" for found, rule in rules if rule]
    assert not broken, "\n".join(broken)


def test_the_loop_names_no_objective() -> None:
    methods = [path for path in (ROOT / "mrp/objectives").glob("*.py") if not path.stem.startswith("_")]
    nodes = [node for path in methods for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)} - {"Config", "Objective"}
    words = re.compile("|".join(rf"\b{word}\b" for word in {path.stem for path in methods} | classes), re.IGNORECASE)
    lines = (ROOT / "mrp/train/loop.py").read_text("utf-8").splitlines()
    named = [
        f"mrp/train/loop.py:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if words.search(line)
    ]
    assert methods
    assert not named, "the loop serves every objective and names none:\n" + "\n".join(named)


def test_the_command_line_starts_without_torch() -> None:
    code = f"import sys, mrp.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"importing mrp.cli imports {done.stdout.strip()}: import it where a verb needs it"


@pytest.mark.parametrize(
    ("importer", "statement", "rule"),
    [
        ("mrp.models.vit", "from mrp.train import step", "downwards"),
        ("mrp.models.masking", "def f():\n    import mrp.models.vit", "downwards"),
        ("mrp.data.order", "from .store import Store", "downwards"),
        ("mrp.run", "from mrp import load", "downwards"),
        ("mrp.train.step", "from ..train.optim import build", "siblings"),
        ("mrp.objectives.mae", "from mrp.objectives import simmim", "siblings"),
        ("mrp.objectives._helpers", "from mrp.objectives.mae import Config", "siblings"),
        ("mrp.api", "import mrp.lab.claims", "downwards"),
        ("mrp.train.guard", "if x:\n    from torch.utils import tensorboard", "tracker"),
        ("mrp.train.step", "import timm.models as models", "models, interop"),
        ("mrp.cli", "from tools import golden", "tools"),
    ],
)
def test_the_rules_bite(importer: str, statement: str, rule: str) -> None:
    (found,) = imports(statement, importer, "here.py")
    known = dict.fromkeys(["mrp", "mrp.data.store", "mrp.lab.claims", "mrp.models.vit", "mrp.objectives.mae"], ROOT)
    known |= dict.fromkeys(["mrp.objectives.simmim", "mrp.train.optim", "mrp.train.step"], ROOT)
    target = owner(found.target, known)
    broken = (target and floor_rule(importer, target)) or third_party_rule(importer, found.target)
    assert broken is not None
    assert rule in broken


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        ("mrp.objectives.mae", "from mrp.objectives import _helpers, _uniformity"),
        ("mrp.objectives._helpers", "from mrp.objectives import _uniformity"),
        ("mrp.objectives", "from . import _helpers"),
        ("mrp.data.loader", "from mrp.data.sources import Source"),
        ("mrp.train.loop", "from mrp.train.step import Step"),
        ("mrp.train.folder", "from mrp import __version__"),
        ("mrp.__main__", "from mrp.cli import main"),
        ("mrp.models.vit", "from timm.layers import Mlp"),
        ("mrp.config", "if TYPE_CHECKING:\n    from mrp.run import Run"),
    ],
)
def test_the_rules_let_the_rest_pass(importer: str, statement: str) -> None:
    for found in imports(statement, importer, "here.py", is_package=importer == "mrp.objectives"):
        target = owner(found.target, modules())
        assert target is None or floor_rule(importer, target) is None
        assert third_party_rule(importer, found.target) is None
