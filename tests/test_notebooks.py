"""The notebooks run from top to bottom, and are kept without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


# More of a notebook's own numbers than these would show prettier pictures, and find no other mistake.
MOST = {"data.train_size": 128, "data.val_size": 64, "trainer.max_epochs": 1}


def shorten(source: str) -> str:
    """The cell with shorter runs, within the notebook's process: each one's own would import torch."""
    source = source.replace("!{sys.executable} -m", "%run -m")
    source = re.sub(
        r"-m simmim\.(?:pretrain|finetune|transfer) ",
        lambda run: f"{run[0]}data.train_size=128 data.val_size=64 ",
        source,
    )
    for option, most in MOST.items():
        source = re.sub(
            rf"({option})=(\d+)",
            lambda typed, most=most: f"{typed[1]}={min(int(typed[2]), most)}",
            source,
        )
    return source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = shorten(cell.source)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}})
    client.execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "error:" not in text
    source = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    runs = re.findall(r"-m simmim\.(?:pretrain|finetune|transfer|analysis)", source)
    assert text.count("finished in") == len(runs) > 0
