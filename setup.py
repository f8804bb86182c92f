"""Builds the two extension modules of Octavo from its C sources.

The instruction set of a file is told by its name (`*_avx2.c`, `*_avx512.c`, `*_amx.c`); everything
else is compiled for the platform's baseline, so one build runs on every machine of its architecture
and `kernels/cpu.c` chooses at load. Compilers from before AMX leave that column out. Environment:

OCTAVO_BUILD   release (default) | asan | tsan | faults | strict | portable   (comma-separated, e.g.
               asan,faults; portable: the scalar column alone, as on other processors)
"""

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
X86 = platform.machine().lower() in {"x86_64", "amd64"}
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
AVX512 += ["-mprefer-vector-width=512"]
AMX = ["-mamx-tile", "-mamx-int8", "-mgfni"]
ISA_FLAGS = {"_avx2.c": AVX2, "_avx512.c": AVX512, "_amx.c": [*AVX512, *AMX]}
# No contraction and no fast maths: results must not depend on what the compiler fuses (law two).
BASE = ["-std=c11", "-O3", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
BASE += ["-fno-strict-aliasing", "-Wall", "-Wextra", "-pthread"]
VARIANTS = {
    "release": [],
    "asan": ["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"],
    "tsan": ["-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"],
    "faults": ["-DOCT_FAULTS"],
    "portable": ["-DOCT_PORTABLE", "-O1", "-g0"],
    "strict": ["-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wvla", "-Wformat=2"],
}
variants = [v for v in os.environ.get("OCTAVO_BUILD", "release").split(",") if v]
if unknown := [v for v in variants if v not in VARIANTS]:
    sys.exit(f"OCTAVO_BUILD: unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
X86 = X86 and "portable" not in variants
FLAGS = BASE + [flag for v in variants for flag in VARIANTS[v]]
LINK = ["-pthread", *[f for v in variants for f in VARIANTS[v] if f.startswith("-fsanitize")]]
if "release" not in variants or len(variants) > 1:
    FLAGS += ["-UNDEBUG"]


CC = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def asked(*flags, text=b""):
    """The run of the compiler that will be used; None if there is none, as the build then says."""
    try:
        return subprocess.run([*CC, *flags], input=text, capture_output=True)
    except OSError:
        return None


def compiles(flags, text):
    """Whether the compiler, and its assembler, take these flags and this C."""
    done = asked(*flags, "-x", "c", "-c", "-o", os.devnull, "-", text=text)
    return done is not None and done.returncode == 0


def sources(*folders):
    """All C files below these folders, without the columns that this machine's compiler lacks."""
    found = sorted(p for f in folders for p in (ROOT / f).rglob("*.c"))
    absent = tuple(ISA_FLAGS) if not X86 else () if HAVE_AMX else ("_amx.c",)
    return [str(p.relative_to(ROOT)) for p in found if not p.name.endswith(absent)]


class BuildExt(build_ext):
    """Compiles files in parallel, each with the flags of its suffix."""

    def run(self):
        """All is compiled anew where the last build was another variant, or by another compiler."""
        built = Path(self.build_temp) / "built_as"
        if not built.is_file() or built.read_text() != BUILD:
            self.force = True
            built.unlink(missing_ok=True)
        super().run()
        built.parent.mkdir(parents=True, exist_ok=True)
        built.write_text(BUILD)

    def copy_extensions_to_source(self):
        """In place, what was built is taken even where pip has put another, newer one."""
        self.force = True
        super().copy_extensions_to_source()

    def build_extension(self, ext):
        compiler, compile_one = self.compiler, self.compiler._compile

        def compile_with_isa(obj, src, suffix, cc_args, extra, pp):
            isa = next((v for k, v in ISA_FLAGS.items() if src.endswith(k)), [])
            compile_one(obj, src, suffix, cc_args, [*extra, *isa], pp)

        def compile_all(srcs, output_dir=None, macros=None, include_dirs=None, debug=0,
                        extra_preargs=None, extra_postargs=None, depends=None):
            macros, objects, extra, pp, build = compiler._setup_compile(
                output_dir, macros, include_dirs, srcs, depends, extra_postargs
            )
            cc_args = compiler._get_cc_args(pp, debug, extra_preargs)
            stale = {o: b for o, b in build.items() if not self.is_fresh(o, b[0])}
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                jobs = [pool.submit(compile_with_isa, o, s, e, cc_args, extra, pp)
                        for o, (s, e) in stale.items()]
                for job in jobs:
                    job.result()
            return objects

        compiler.compile = compile_all
        try:
            super().build_extension(ext)
        finally:
            del compiler.compile

    def is_fresh(self, obj, src):
        """Both extensions share the kernels: what this run has compiled is not compiled again."""
        done = self.__dict__.setdefault("_done", set())
        if obj in done and os.path.exists(obj):
            return True
        done.add(obj)
        if self.force or not os.path.exists(obj):
            return False
        newest = max(p.stat().st_mtime for p in HEADERS | {ROOT / src})
        return os.path.getmtime(obj) > newest


HAVE_AMX = X86 and compiles(AMX, b'void f(void) { __asm__("tilerelease"); }')
HEADERS = {ROOT / "setup.py"}
for folder in ("kernels", "csrc"):
    for pattern in ("*.h", "*.def", "*.inc"):
        HEADERS |= set((ROOT / folder).rglob(pattern))

version = asked("--version")
BUILD = repr((CC, version and version.stdout, FLAGS, HAVE_AMX))

shared = dict(
    include_dirs=[".", numpy.get_include()],
    define_macros=[
        ("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
        ("_GNU_SOURCE", None),
        *([("OCT_HAVE_AMX", None)] if HAVE_AMX else []),
    ],
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
    depends=[str(h.relative_to(ROOT)) for h in HEADERS],
)
kernels, binding = sources("kernels"), sources("csrc/py")
probe = [*kernels, *[s for s in binding if Path(s).name.startswith("probe")]]
core = [*kernels, *sources("csrc/core"), *[s for s in binding if s not in probe]]
setup(
    ext_modules=[
        Extension("octavo._core", core, **shared),
        Extension("octavo._probe", probe, **shared),
    ],
    package_dir={"": "python"},
    cmdclass={"build_ext": BuildExt},
)
