"""The notebooks run from top to bottom, in the environment under test."""

import os
import sys
from pathlib import Path

import pytest
from oracle import latent

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs a notebook, with one line of it changed, and returns it with outputs."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    kernelspec = pytest.importorskip("jupyter_client.kernelspec")
    # The kernel must be this interpreter, whatever kernel specs the user has installed.
    spec = kernelspec.KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="under test",
        language="python",
    )
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))

    def run(name, old="", new=""):
        notebook = nbformat.read(FOLDER / name, as_version=4)
        assert not any(c.get("outputs") for c in notebook.cells), "commit it without outputs"
        if old:
            (cell,) = (c for c in notebook.cells if c.cell_type == "code" and old in c.source)
            cell.source = cell.source.replace(old, new)
        nbclient.NotebookClient(notebook, timeout=600).execute()
        return notebook

    return run


@pytest.mark.model
def test_quickstart_runs(smollm2, execute):
    execute("quickstart.ipynb")


def test_the_flight_recorder_runs(execute, tmp_path):
    """On the model of OCTAVO_NOTEBOOK_MOE, else on a tiny random one."""
    pytest.importorskip("matplotlib")
    model = os.environ.get("OCTAVO_NOTEBOOK_MOE")
    if not model:
        model = str(tmp_path / "tiny")
        latent.write_folder(Path(model), latent.KIMI)
    notebook = execute("moe_flight_recorder.ipynb", '"kimi-mini"', repr(model))
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    shown = [kind for o in outputs for kind in o.get("data", {})]
    assert shown.count("image/png") == 3 and shown.count("text/html") >= 3
