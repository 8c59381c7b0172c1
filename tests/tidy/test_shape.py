"""The shape of the code, held by a test: sizes, imports, names, points."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshforge_trio.points import Point

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("meshforge_trio", "chaos", "tests", "scenarios", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
PRODUCT = [path for path in SOURCES if path.is_relative_to(ROOT / "meshforge_trio")]
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
PORT_METHODS_MAX = 8

#: Lowest first: a module imports from its own group and those before it.
ORDER = (
    ("errors", "points", "ids", "masking", "exact"),
    ("subjects",),
    ("envelope", "clock"),
    ("decisions", "permissions", "signing", "codec"),
    ("keyring",),
    ("agent", "policy", "security", "broker.port", "store.port"),
    ("checks", "config", "sites", "crud", "guards", "locks", "telemetry", "metrics", "server"),
    ("intake", "entities", "broker", "store", "nats_config"),
    ("waiting", "drafts", "keys", "turnstile"),
    ("plan",),
    ("asides", "redrive", "preconditions", "deadlines"),
    ("decide",),
    ("session", "protocol"),
    ("comparison",),
    ("recovery",),
    ("engine",),
    ("health", "doctor"),
    ("health_server", "backup", "verify"),
    ("runtime", "replay", "uplink", "outgoing", "answers", "feed", "lock_client", "revise"),
    ("client", "bulkheads", "launch", "sync_client", "stage"),
    ("workers", "takeover", "reconcile", "dead_letters", "stranded"),
    ("factory",),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def name_of(path: Path) -> str:
    """`broker.port` for meshforge_trio/broker/port.py."""
    parts = path.relative_to(ROOT / "meshforge_trio").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def rank_of(name: str) -> int | None:
    """The group of a module, by its own name or its package's."""
    return RANK.get(name, RANK.get(name.split(".", maxsplit=1)[0]))


def imports(path: Path) -> Iterator[str]:
    """Modules imported when the file is, `TYPE_CHECKING` aside."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX
    long = {node.name: length(node) for node in functions(path) if length(node) > FUNCTION_LINES_MAX}
    assert not long


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_order(path: Path) -> None:
    own = name_of(path)
    if not own:
        return
    rank = rank_of(own)
    assert rank is not None, f"{own} is in no group of ORDER"
    source = path.read_text()
    for module in imports(path):
        if not module.startswith("meshforge_trio."):
            continue
        name = module.removeprefix("meshforge_trio.")
        # What is imported for types alone does not run.
        if re.search(rf"if TYPE_CHECKING:\n(?:    .*\n)*?    from {re.escape(module)} import", source):
            continue
        other = rank_of(name)
        assert other is not None, f"{name} is in no group of ORDER"
        assert other <= rank, f"{own} imports {name}, which stands above it"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_product_knows_no_harness(path: Path) -> None:
    forbidden = {"chaos", "hypothesis", "pytest", "tests", "pytest_trio"}
    assert not forbidden & {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("port", ["broker/port.py", "store/port.py"])
def test_ports_are_small(port: str) -> None:
    for node in ast.walk(tree(ROOT / "meshforge_trio" / port)):
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Protocol" for base in node.bases):
            methods = [
                item
                for item in node.body
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                and not any(getattr(decorator, "id", "") == "property" for decorator in item.decorator_list)
            ]
            assert len(methods) <= PORT_METHODS_MAX, f"{node.name} has {len(methods)}"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_swallowed_errors(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno} bare except"
            blind = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            silent = all(isinstance(item, ast.Pass) for item in node.body)
            assert not (blind and silent), f"{path.name}:{node.lineno} swallows everything"


def test_clocks_and_chance_live_in_few_places() -> None:
    allowed = {
        "clock",
        "ids",
        "server",
        "store.lease",
        "store.schema",
        "telemetry",
        "sync_client",
        "cli.serve",
        "workers",
    }
    used = {
        name_of(path)
        for path in PRODUCT
        if re.search(r"\btime\.(time|monotonic|perf_counter)\(|datetime\.now|\brandom\.|uuid4", path.read_text())
    }
    assert used <= allowed


def test_every_point_stands_in_the_code_once_or_more() -> None:
    text = "\n".join(path.read_text() for path in PRODUCT if path.name != "points.py")
    for point in Point:
        assert re.search(rf"(at|probe)\({point.name}\)", text), f"{point} is never reached"


def test_no_leftovers() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    for path in SOURCES:
        if path != Path(__file__):
            assert not words.search(path.read_text()), path


def test_names_say_what_things_are() -> None:
    vague = re.compile(r"(^|_)(manager|helper|util|utils|data)(_|$)|^process_", re.IGNORECASE)
    for path in PRODUCT:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name)
                assert not vague.search(name) or node.name.startswith("LockManager"), f"{path.name}: {node.name}"
