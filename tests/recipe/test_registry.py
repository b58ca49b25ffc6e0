"""Names in a recipe lead to objects, shipped, installed or the user's, or to a sentence that says what was meant."""

from __future__ import annotations

import sys

import pytest

from rld.errors import LibraryError
from rld.recipe import registry

MINE = """\
from .helper import factor

def mine(completions, *, scale=1.0, **columns):
    return [factor * scale for _ in completions]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "helper.py").write_text("factor = 2.0\n")
    (tmp_path / "random.py").write_text(MINE)  # called like a module of the standard library
    return tmp_path


def test_a_file_of_the_users_is_imported_with_its_neighbours_and_harms_nobody(folder):
    path, modules = list(sys.path), dict(sys.modules)
    mine = registry.load("rewards", "./random.py:mine", folder)
    assert mine(["a"], scale=3.0) == [6.0]
    assert sys.path == path
    assert sys.modules.get("random") is modules.get("random")
    assert registry.load("rewards", "random.py:mine", folder) is mine


def test_files_of_the_same_name_in_two_folders_are_two_modules(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "random.py").write_text("def mine(completions):\n    return [0.5]\n")
    assert registry.load("rewards", "random.py:mine", folder)(["a"]) == [2.0]
    assert registry.load("rewards", "random.py:mine", other)(["a"]) == [0.5]


def test_an_installed_module_is_found_without_importing_it(folder):
    place = registry.locate("generators", "wsgiref.util:guess_scheme", folder)
    assert place.module == "wsgiref.util"
    assert "wsgiref.util" not in sys.modules
    assert registry.load("generators", "wsgiref.util:guess_scheme", folder)({}) == "http"


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("rewards", "random.py", "'random.py' names nothing; write it as ./file.py:function"),
        ("rewards", "./randm.py:mine", "no file ./randm.py beside the recipe; did you mean './random.py'?"),
        ("rewards", "./random.py:mien", "./random.py has no 'mien'; did you mean 'mine'?"),
        ("rewards", "no.such.module:f", "no installed module 'no.such.module'"),
        ("rewards", "answer:f", "none of the shipped rewards is in a file called 'answer'"),
        ("generators", "wsgiref.util:gess_scheme", "did you mean 'guess_scheme'?"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_was_meant(folder, kind, name, expected):
    with pytest.raises(LibraryError) as error:
        registry.load(kind, name, folder)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nonsense_that_is_nowhere\ndef f(): ...", "broken.py:1: importing it raised ModuleNotFoundError"),
        (
            "import random\ndef f(): ...",
            "broken.py:1: `import random` means an installed module or random.py beside it",
        ),
        (
            "import sys\nsys.exit(0)\ndef f(): ...",
            "broken.py:2: importing it called sys.exit(0); what it does as a script",
        ),
        ("exit()\ndef f(): ...", "broken.py:1: importing it called sys.exit()"),
        ("raise KeyboardInterrupt\ndef f(): ...", "broken.py:1: importing it raised KeyboardInterrupt"),
        ("def f(): ...\n1 / 0", "broken.py:2: importing it raised ZeroDivisionError: division by zero"),
        ("def f(:\n", "broken.py:1: not valid Python"),
    ],
)
def test_a_file_that_cannot_be_imported_names_the_line(folder, text, expected):
    (folder / "broken.py").write_text(text)
    with pytest.raises(LibraryError) as error:
        registry.load("rewards", "./broken.py:f", folder)
    assert expected in str(error.value)


def test_what_ships_is_listed_with_its_description_and_loads(tmp_path):
    for kind in ("rewards", "curricula"):
        shipped = registry.names(kind)
        assert shipped, f"no {kind} ship"
        for name, about in shipped.items():
            assert about, f"{name} has no docstring"
            assert callable(registry.load(kind, name, tmp_path))


def test_a_recipe_is_found_by_path_or_shipped_name(tmp_path, monkeypatch):
    shipped = tmp_path / "recipes"
    shipped.mkdir()
    (shipped / "quickstart.yaml").write_text("# Start here\nname: quickstart\n")
    (shipped / "hard").mkdir()
    (shipped / "hard" / "one.yaml").write_text("# Harder\nname: one\n")
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path / kind)
    (tmp_path / "mine.yaml").touch()
    assert registry.find_recipe("quickstart") == shipped / "quickstart.yaml"
    assert registry.find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    assert registry.find_recipe("hard/one") == shipped / "hard" / "one.yaml"
    assert registry.names("recipes") == {"hard/one": "Harder", "quickstart": "Start here"}
    with pytest.raises(LibraryError, match="did you mean 'quickstart'"):
        registry.find_recipe("quikstart")
    with pytest.raises(LibraryError, match=r"did you mean '.*mine\.yaml'"):
        registry.find_recipe(str(tmp_path / "mien.yaml"))
    with pytest.raises(LibraryError, match="did you mean the shipped one, 'quickstart'"):
        registry.find_recipe("elsewhere/quickstart.yaml")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "runs/first/student"])
def test_a_folder_that_is_missing_has_no_files(tmp_path, name):
    assert registry.model_file(name, "config.json", tmp_path) is None


@pytest.mark.parametrize(
    ("name", "can_judge"),
    [
        ("plain", True),
        ("other", True),
        ("later", False),
        ("alias", False),
        ("wrapped", False),
        ("judge", False),
        ("asked", False),
        ("number", True),
    ],
)
def test_a_reward_that_is_assigned_or_decorated_is_asked_what_it_is(tmp_path, name, can_judge):
    (tmp_path / "own.py").write_text(
        "import functools\n\n"
        "def plain(completions, **_): ...\n\n"
        "async def later(completions, **_): ...\n\n"
        "class Judge:\n    async def __call__(self, completions, **_): ...\n\n"
        "@functools.cache\ndef asked(completions, model, tokenizer): ...\n\n"
        "other, alias, wrapped, judge, number = plain, later, functools.partial(later), Judge(), 3\n"
    )
    assert registry.can_judge(f"./own.py:{name}", tmp_path) is can_judge
