"""docs/architecture.md against the code: every file is in it, and rooms import from above alone."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENT = (REPOSITORY / "docs/architecture.md").read_text()
# From above to below, as its table has them; three of them know nothing of each other.
ROOMS = ["errors", "metrics", "modules", "dataset", "argparser", "utils", "train"]
ROOMS += ["predict", "ablate", "run"]
STRANGERS = {"metrics", "modules", "dataset"}


def files_of(room):
    folder = REPOSITORY / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [REPOSITORY / f"{room}.py"]


def imported_rooms(path):
    """The rooms that a file imports from, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_from_above_alone(room):
    above = set(ROOMS[: ROOMS.index(room)])
    if room in STRANGERS:
        above -= STRANGERS
    for path in files_of(room):
        assert imported_rooms(path) <= above | {room}, path


def test_every_file_is_in_the_document():
    top = {path.stem for path in REPOSITORY.glob("*.py")}
    assert top == {room for room in ROOMS if not (REPOSITORY / room).is_dir()}
    for room in ROOMS:
        for path in files_of(room):
            assert path.name == "__init__.py" or f"`{path.name}`" in DOCUMENT, path


def test_the_table_has_the_rooms_in_their_order():
    places = [
        DOCUMENT.index(f"\n| `{room}{'/' if (REPOSITORY / room).is_dir() else '.py'}` |")
        for room in ROOMS
    ]
    assert places == sorted(places)
