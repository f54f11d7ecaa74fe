"""The floors of the house: which folder may import from which, and which third party is let in where.

Each line of FLOORS is one folder of `mrp/`, or one module that stands at its top. A folder imports only from folders
that stand above it in the list, and its own modules may use each other as long as they form no circle. In a folder
that is a registry (one file = one part that a name chooses) the files never import each other. What stands under
`if TYPE_CHECKING:` never runs and does not count; what stands inside a function does.
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

FLOORS = (
    "config",
    "schedules",
    "imports",
    "outside",
    "registry",
    "schema",
    "files",
    "progress",
    "arguments",
    "batch",
    "tensors",
    "apart",
    "models",
    "methodkit",
    "objectives",
    "data",
    "prepare",
    "step",
    "optim",
    "optimizers",
    "locking",
    "environment",
    "folder",
    "ending",
    "checkpoint",
    "processes",
    "trackers",
    "monitor",
    "evaluate",
    "status",
    "evaluators",
    "suites",
    "interop",
    "run",
    "build",
    "plan",
    "model",
    "session",
    "state",
    "feeding",
    "train",
    "replay",
    "probing",
    "certify",
    "judging",
    "doctor",
    "report",
    "api",
    "exchange",
    "adapting",
    "check",
    "lab",
    "verbs",
    "cli",
    "__main__",
    "__init__",
    "tools",
)
REGISTRIES = ("objectives", "optimizers", "trackers", "evaluators", "data.sources", "data.augmentations")
THIRD_PARTIES = {
    "accelerate": "processes session state replay evaluators monitor",
    "h5py": "data",
    "huggingface_hub": "interop",
    "matplotlib": "report lab",
    "onnx": "interop",
    "onnxruntime": "interop",
    "transformers": "interop",
    "tensorboard": "trackers",
    "pyarrow": "data",
    "submitit": "processes",
    "tifffile": "data",
    "timm": "models interop check",
    "torch.utils.tensorboard": "trackers",
    "trackio": "trackers",
    "wandb": "trackers",
    "webdataset": "data",
    "zarr": "data",
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
    """Returns the place in FLOORS of the folder that holds a module."""
    name = short(module).partition(".")[0]
    return FLOORS.index(name) if name in FLOORS else None


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


def registry_of(module: str) -> str | None:
    """Returns the registry that a module is a part of; its `__init__` is not one of the parts."""
    return next((name for name in REGISTRIES if short(module).startswith(f"{name}.")), None)


def floor_rule(importer: str, target: str) -> str | None:
    """Returns the rule that an import breaks."""
    here, there = floor(importer), floor(target)
    if here is None or there is None or there < here:
        return None  # a module without a floor has a test of its own
    if there > here:
        return f"{FLOORS[here]} stands below {FLOORS[there]}: imports go downwards only"
    registry = registry_of(importer)
    if registry is not None and registry == registry_of(target) and importer != target and "._" not in target:
        return f"parts of the registry {registry} never import each other"
    return None


def third_party_rule(importer: str, target: str) -> str | None:
    for name, rooms in THIRD_PARTIES.items():
        if within(target, name) and not within(short(importer), f"{rooms} tools"):
            return f"{name} stays in {', '.join(rooms.split())}"
    if importer.startswith("mrp") and within(target, "tests tools"):
        return "mrp imports neither its tests nor its tools"
    return None


def test_every_module_has_a_floor() -> None:
    homeless = [str(path.relative_to(ROOT)) for module, path in modules().items() if floor(module) is None]
    assert not homeless, f"name their folder in FLOORS, as low as possible: {', '.join(homeless)}"


def test_imports_go_downwards() -> None:
    known, broken = modules(), []
    for importer, target, place in all_imports():
        module = owner(target, known)
        rule = floor_rule(importer, module) if module else None
        if rule:
            broken.append(f"{place}: {importer} imports {module}: {rule}")
    assert not broken, "\n".join(dict.fromkeys(broken))


def test_the_lab_is_known_to_its_verb_only() -> None:
    outside = [
        f"{each.place}: {each.importer} imports {each.target}"
        for each in all_imports()
        if within(each.target, "mrp.lab") and not within(each.importer, "mrp.lab mrp.verbs.lab tools")
    ]
    assert not outside, "\n".join(outside)


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
    lines = (ROOT / "mrp/train.py").read_text("utf-8").splitlines()
    named = [f"mrp/train.py:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if words.search(line)]
    assert methods
    assert not named, "the loop serves every objective and names none:\n" + "\n".join(named)


@pytest.mark.parametrize("module", ["mrp", "mrp.cli; mrp.cli.parser()", "mrp.run"])
def test_it_is_imported_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"importing {module} imports {done.stdout.strip()}: import it where it is needed"


@pytest.mark.parametrize(
    ("importer", "statement", "rule"),
    [
        ("mrp.models.vit", "from mrp.step import Step", "downwards"),
        ("mrp.models.masking", "def f():\n    import mrp.run", "downwards"),
        ("mrp.data.order", "from ..run import Run", "downwards"),
        ("mrp.objectives.mae", "from mrp.objectives import simmim", "never import each other"),
        ("mrp.api", "import mrp.lab.claims", "downwards"),
        ("mrp.monitor.guard", "if x:\n    from torch.utils import tensorboard", "trackers"),
        ("mrp.step", "import timm.models as models", "models, interop"),
        ("mrp.cli", "from tools import golden", "tools"),
    ],
)
def test_the_rules_bite(importer: str, statement: str, rule: str) -> None:
    (statement_found,) = imports(statement, importer, "here.py")
    names = ("mrp", "mrp.step", "mrp.run", "mrp.lab.claims", "mrp.objectives.mae", "mrp.objectives.simmim")
    target = owner(statement_found.target, dict.fromkeys(names, ROOT))
    broken = (target and floor_rule(importer, target)) or third_party_rule(importer, statement_found.target)
    assert broken is not None
    assert rule in broken


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        ("mrp.data.loader", "from mrp.data.order import Order"),
        ("mrp.train", "from mrp.step import Step"),
        ("mrp.folder", "from mrp import __version__"),
        ("mrp.__main__", "from mrp.cli import main"),
        ("mrp.models.vit", "from timm.layers import Mlp"),
        ("mrp.config", "if TYPE_CHECKING:\n    from mrp.run import Run"),
    ],
)
def test_the_rules_let_the_rest_pass(importer: str, statement: str) -> None:
    for found in imports(statement, importer, "here.py"):
        target = owner(found.target, modules())
        assert target is None or floor_rule(importer, target) is None
        assert third_party_rule(importer, found.target) is None
