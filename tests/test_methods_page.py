"""docs/methods.md is what the registry says."""

import runpy
from pathlib import Path

from heterosis.merge.methods import methods

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_methods_table.py"))


def test_the_page_is_up_to_date() -> None:
    assert SCRIPT["render"]() == PAGE, "run scripts/make_methods_table.py"


def test_every_parameter_is_explained() -> None:
    for method in methods().values():
        _, meanings = SCRIPT["_docstring"](method)
        assert {p.argument for p in method.parameters.values()} <= meanings.keys(), method.name
        assert f"\n## {method.name}\n" in PAGE
