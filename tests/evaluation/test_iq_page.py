"""The page on the IQ evaluation shows real items, and the tables of the code."""

import pytest
from iq_page import example, rte_example, table
from repository import ROOT

from flmgrow.evaluation.paper import TABLES
from flmgrow.evaluation.tasks.iq.generators import GENERATORS

PAGE = (ROOT / "docs" / "concepts" / "iq-evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_items_are_real(name: str) -> None:
    assert f"```text\n{example(name)}\n```" in PAGE


def test_symbols_are_real() -> None:
    assert f"```text\n{rte_example()}\n```" in PAGE


def test_tables_are_those_of_the_code() -> None:
    for content in TABLES:
        assert f"{table(content)}\n" in PAGE, content.title
