"""The order of the rooms: what imports what, lazy and TYPE_CHECKING imports included."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "mpa_ray"
FLOORS = [
    {"errors", "schema", "tasks"},
    {"config", "observability", "storage"},
    {"demo", "images", "models"},
    {"engines", "placement", "training"},
    {"stages", "parity_leveler"},
    {"pseudo_annotator", "parity_identifier", "report"},
    {"steps"},
    {"pipeline"},
    {"__init__", "cli", "tools"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported(file: Path) -> Iterator[str]:
    """The modules and names of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith("mpa_ray."))


def test_every_room_has_a_floor() -> None:
    found = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if not path.name.startswith("__pycache__")
    }
    assert found == set(FLOOR)
    assert len(list(ROOT.glob("*.py"))) <= 8


def test_no_room_imports_a_higher_one() -> None:
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        others = {name.split(".")[1] for name in imported(file)} - {room}
        wrong += [
            f"{file.relative_to(ROOT)}: {other}"
            for other in sorted(others)
            if FLOOR.get(other, 99) >= FLOOR[room]
        ]
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_in_a_circle_or_its_own_room_s_face() -> None:
    files = {
        "mpa_ray." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in ROOT.rglob("*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}

    def module_of(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]

    graph = {
        module: {module_of(name) for name in imported(path)} - {module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    inside = {module for module in modules if f"{module}.__init__" not in files}
    faces = [
        f"{module}: its own room"
        for module in sorted(inside)
        if module.count(".") > 1 and module.rpartition(".")[0] in graph[module]
    ]
    assert not faces, "\n".join(faces)
