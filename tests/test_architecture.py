"""The layers of docs/architecture.md: a package imports only from the layers below it."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENT = (REPOSITORY / "docs/architecture.md").read_text()
# From the lowest up; three of them are independent of each other.
ROOMS = ["utils", "metrics", "modules", "dataset", "report", "foreign_flags", "argparser"]
ROOMS += ["places", "resume", "stored_flags", "build", "evaluate", "train", "predict"]
ROOMS += ["hubconf", "ablate", "run"]
STRANGERS = {"metrics", "modules", "dataset"}


def files_of(room):
    folder = REPOSITORY / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [REPOSITORY / f"{room}.py"]


def imported_rooms(path):
    """The rooms that a file imports from, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_from_below_alone(room):
    below = set(ROOMS[: ROOMS.index(room)])
    if room in STRANGERS:
        below -= STRANGERS
    for path in files_of(room):
        assert imported_rooms(path) <= below | {room}, path


def test_the_list_of_rooms_is_complete():
    top = {path.stem for path in REPOSITORY.glob("*.py")}
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert top | packages == {*ROOMS, "benchmarks"}


def test_the_table_has_the_rooms_in_their_order():
    places = [
        DOCUMENT.index(f"\n| `{room}{'/' if (REPOSITORY / room).is_dir() else '.py'}` |")
        for room in ROOMS
    ]
    assert places == sorted(places)
