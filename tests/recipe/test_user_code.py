"""A user's file imports what lies beside it, as a script would, and nobody else's modules change."""

from __future__ import annotations

import sys

import pytest

from rld.errors import LibraryError
from rld.recipe import registry, user_code

REWARD = """\
from helper import factor
import tools.numbers
import tools.numbers as numbers
from tools import texts
from plain.inner import three

def mine(completions, **_):
    import late
    from helper import factor as again
    return [factor, again, tools.numbers.one, numbers.one, texts.two, three, late.four]
"""


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def project(folder, factor):
    return write(
        folder,
        {
            "rewards.py": REWARD,
            "helper.py": f"import deep\nfactor = deep.value + {factor}",
            "deep.py": "value = 0",
            "tools/__init__.py": "",
            "tools/numbers.py": "from helper import factor\nfrom .texts import two\none = factor + two",
            "tools/texts.py": "two = 2",
            "plain/inner.py": "three = 3",
            "late.py": "four = 4",
            "unrelated.py": "1 / 0",
        },
    )


def test_helpers_beside_each_file_are_its_own(tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    for factor in (1, 5):
        folder = project(tmp_path / str(factor), factor)
        mine = registry.load("rewards", "./rewards.py:mine", folder)
        assert mine([]) == [factor, factor, factor + 2, factor + 2, 2, 3, 4]
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if not name.startswith("_rld_user_")} <= {"site"}


def test_the_files_that_a_users_file_imports_are_listed(tmp_path):
    folder = project(tmp_path, 1)
    files = [path.relative_to(folder.resolve()).as_posix() for path in user_code.sources(folder / "rewards.py")]
    assert files == [
        *("deep.py", "helper.py", "late.py", "plain/inner.py"),
        *("tools/__init__.py", "tools/numbers.py", "tools/texts.py"),
    ]
    assert user_code.sources(folder / "deep.py") == []


@pytest.mark.parametrize("name", ["statistics", "numpy"])
@pytest.mark.parametrize("place", ["", "/__init__"])
def test_a_helper_with_the_name_of_an_installed_module_is_refused(tmp_path, name, place):
    text = "def mine(completions, **_): return [1.0]"
    beside = f"{name}{place}.py"
    write(
        tmp_path, {beside: "two = 2", "mine.py": "from helper import x\n" + text, "helper.py": f"x = 1\nimport {name}"}
    )
    for use in (registry.locate, registry.load):
        with pytest.raises(LibraryError, match=rf"helper.py:2: `import {name}` .*{name}\S* beside it: rename"):
            use("rewards", "./mine.py:mine", tmp_path)
    (tmp_path / "helper.py").write_text(f"from . import {name}\nx = {name}.two")
    assert registry.load("rewards", "./mine.py:mine", tmp_path)([]) == [1.0]


def test_a_folder_of_data_does_not_hide_an_installed_module(tmp_path):
    write(
        tmp_path,
        {"json/rows.txt": "", "email/x.py": "", "mine.py": "import json, email\nmine = [json.dumps, email.__file__]"},
    )
    dumps, file = registry.load("rewards", "./mine.py:mine", tmp_path)
    assert dumps(1) == "1" and not file.startswith(str(tmp_path))
