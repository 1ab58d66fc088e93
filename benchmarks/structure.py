"""How the code is laid out, in figures: what lies at the top, floors, circles, and the lengths of
files and functions.

    python benchmarks/structure.py
    python benchmarks/structure.py --folder ../elsewhere/its_package

A floor is a module's height in the order of imports: what it imports lies on lower floors. Lazy and
TYPE_CHECKING imports count. Modules of a circle share a floor.
"""

import argparse
import ast
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import result_file

LONG = 50


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted names and files."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(tree: ast.Module, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, wherever in it."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in modules
                else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return named & modules.keys()


def circles_of(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import one another, by what each can reach."""
    reached = {module: _reach(module, graph) for module in graph}
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in graph
        if module in reached[module]
    }
    return [set(group) for group in groups]


def _reach(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(graph[start])
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += graph[module]
    return found


def floors_of(graph: dict[str, set[str]]) -> int:
    """The floors of a graph; a circle counts as one module."""
    of = {module: min(circle) for circle in circles_of(graph) for module in circle}
    below = {module: {of.get(other, other) for other in others} for module, others in graph.items()}
    merged: dict[str, set[str]] = {}
    for module, others in below.items():
        name = of.get(module, module)
        merged.setdefault(name, set()).update(others - {name})
    heights: dict[str, int] = {}

    def height(module: str) -> int:
        if module not in heights:
            heights[module] = 1 + max((height(other) for other in merged[module]), default=0)
        return heights[module]

    return max(map(height, merged))


def rooms_of(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph of what lies directly in the package: rooms and files at the top."""
    found: dict[str, set[str]] = {}
    for module, others in graph.items():
        room = _room(module)
        found.setdefault(room, set()).update({_room(other) for other in others} - {room})
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _functions(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def measure(package: Path) -> dict[str, Any]:
    """The figures of a package."""
    modules = modules_of(package)
    trees = {module: ast.parse(path.read_text()) for module, path in modules.items()}
    graph = {module: imports_of(tree, modules) - {module} for module, tree in trees.items()}
    rooms = rooms_of(graph)
    files = sorted(len(path.read_text().splitlines()) for path in modules.values())
    functions = sorted(length for tree in trees.values() for length in _functions(tree))
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    bare = Counter(
        ast.unparse(node.type) if node.type else ""
        for node in nodes
        if isinstance(node, ast.ExceptHandler)
    )
    return {
        "files": len(files),
        "lines": sum(files),
        # Whatever the length of a line.
        "statements": sum(isinstance(node, ast.stmt) for node in nodes),
        "files at the top": len(list(package.glob("*.py"))),
        "rooms": len({path.parent for path in package.glob("*/__init__.py")}),
        "floors of rooms": floors_of(rooms),
        "floors of files": floors_of(graph),
        "circles of rooms": len(circles_of(rooms)),
        "circles of files": len(circles_of(graph)),
        "imports of the package's own a file": round(sum(map(len, graph.values())) / len(graph), 1),
        "lines of a file, median": int(statistics.median(files)),
        "lines of a file, 95th percentile": files[int(0.95 * (len(files) - 1))],
        "lines of a function, median": int(statistics.median(functions)),
        "lines of a function, 95th percentile": functions[int(0.95 * (len(functions) - 1))],
        f"functions over {LONG} lines": sum(length > LONG for length in functions),
        "`except Exception` or bare": bare["Exception"] + bare[""] + bare["BaseException"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parents[1] / "mpa_ray",
        help="of another package",
    )
    given = parser.parse_args()
    figures = measure(given.folder.resolve())
    text = "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in figures.items())]
    )
    print(text)
    if given.folder.resolve().name == "mpa_ray":
        print(result_file.write("structure", text, {"figures": figures}))


if __name__ == "__main__":
    main()
