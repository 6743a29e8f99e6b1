"""The notebook examples/first_run.ipynb runs cell by cell, learns something, and asks a kernel too where nbclient is installed."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "first_run.ipynb"
PAGE = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in PAGE["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs():
    assert len(CELLS) > 5 and not any(cell.get("outputs") or cell.get("execution_count") for cell in PAGE["cells"])


def test_the_links_of_the_notebook_lead_somewhere():
    text = "".join("".join(cell["source"]) for cell in PAGE["cells"])
    links = re.findall(r"\]\(\.\./([\w./]+)#?([\w-]*)\)", text)
    assert len(links) > 3
    for file, heading in links:
        lines = (NOTEBOOK.parents[1] / file).read_text(encoding="utf-8").splitlines()
        headings = [re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-") for line in lines if line.startswith("#")]
        assert not heading or heading in headings, (file, heading)


def test_the_cells_of_the_notebook_run_and_the_model_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert names["losses"][-1] < names["losses"][0] / 2 and names["result"].figures["accuracy"] > 0.6
    assert names["answer"] == names["answers"][0] == names["by_transformers"].strip() == names["result"].rows[0]["answer"]


def test_a_kernel_runs_the_notebook(tmp_path):
    nbclient, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel")
    page = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(page, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "first-export" / "model.safetensors").is_file()
