"""The README's Python runs as written, the examples run in small form."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, make_place, python, tiny

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def run_python(folder: Path, *arguments: str) -> str:
    """Run Python with this project in a folder, and return standard output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of a notebook's shell
    process = python("-W", "ignore", *arguments, cwd=folder, PATH=path)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


def run_notebook(name: str, folder: Path, **parameters: object) -> str:
    """Run a notebook with other parameters and without the cells that install packages."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cells += [] if "install" in tags else [cell]
        if "parameters" in tags:
            lines = [f"{key} = {value!r}" for key, value in parameters.items()]
            cells.append(nbformat.v4.new_code_cell("\n".join(lines)))
    cells.append(nbformat.v4.new_code_cell("print('all cells ran')"))
    notebook.cells = cells
    nbformat.write(notebook, folder / name)
    output = run_python(folder, "-m", "IPython", "--colors=NoColor", name)
    assert "all cells ran" in output, output[-4000:]
    return output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_holds_no_outputs(path):
    assert path.stat().st_size < 20_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata.keys() <= {"tags"}
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 1
    output = run_python(tmp_path, "-c", blocks[0])
    assert re.search(r"^demo-minilm-two_stage-\w+ +252 +0\.\d{3}", output, re.MULTILINE)
    assert re.search(r"^(a fungal partner|fire|a host tree) \[0\.", output, re.MULTILINE)


@pytest.mark.slow
def test_the_quick_start_compares_two_readers(tmp_path):
    settings = tiny(make_place(tmp_path / "place"))
    scripted = run_python(tmp_path, str(EXAMPLES / "quickstart.py"), *settings)
    assert "kaggle-tiny-bm25" in scripted
    assert " − kaggle-tiny-none" in scripted
    shown = run_notebook("quickstart.ipynb", tmp_path, settings=settings)
    assert " − kaggle-tiny-none" in shown


@pytest.mark.slow
def test_your_own_questions_are_answered_from_your_documents(tmp_path):
    output = run_python(tmp_path, str(EXAMPLES / "own_questions.py"))
    assert output.splitlines()[-1].startswith("on the shelf · Kitchen · The kettle stands")


@pytest.mark.slow
def test_a_bundle_of_one_notebook_answers_in_the_other(tmp_path):
    place = make_place(tmp_path / "place")
    *data, model, epochs = tiny(place)
    test = f"data=kaggle_test data.dir={place / 'questions'}"
    reader = [model, epochs]
    trained = run_notebook("kaggle_train.ipynb", tmp_path, data=data, reader=reader, test=test)
    assert "MAP@3 on held-out questions:" in trained
    (tmp_path / "offline").mkdir()
    bundle = str(tmp_path / "bundle")
    run_notebook("kaggle_submission.ipynb", tmp_path / "offline", bundle=bundle, test=test)
    header, *rows = (tmp_path / "offline" / "submission.csv").read_text().splitlines()
    assert header == "id,prediction"
    assert [row.partition(",")[0] for row in rows] == [str(i) for i in range(50, 56)]
