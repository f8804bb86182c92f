"""The notebooks run from top to bottom, in the environment under test."""

import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs a notebook and returns it with its outputs."""
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

    def run(name):
        notebook = nbformat.read(FOLDER / name, as_version=4)
        assert not any(c.get("outputs") for c in notebook.cells), "commit it without outputs"
        nbclient.NotebookClient(notebook, timeout=600).execute()
        return notebook

    return run


@pytest.mark.model
def test_quickstart_runs(smollm2, execute):
    execute("quickstart.ipynb")


def test_the_flight_recorder_runs(execute):
    pytest.importorskip("matplotlib")
    notebook = execute("moe_flight_recorder.ipynb")
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    shown = [kind for o in outputs for kind in o.get("data", {})]
    assert shown.count("image/png") == 3 and shown.count("text/html") >= 3
