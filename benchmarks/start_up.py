"""How long a command takes from the shell to its answer, beside what its libraries take to be imported.

    python benchmarks/start_up.py --output start_up.json

Each is a process of its own, and all run in turn: `import torch`, below which nothing starts that computes
with it; `import torch, transformers.modeling_utils`, what models of transformers usually wait for; a search
of a folder that was never searched, whose 60 images are encoded; the same search again; and `tpas app` until
its page answers. The model is that of the demo. All searches have to give the same answer.

`--package` names another checkout of this repository, which does the same in turn with this one. `--quick`
only shows that the script runs.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measuring

ROOT = Path(__file__).resolve().parents[1]
TORCH, LIBRARIES = "import torch", "import torch, transformers.modeling_utils"
QUESTION = "a person in a red shirt is lying on the ground"
LONGEST = 300.0  # seconds that the page may take
FIND_PACKAGE = """
import importlib.util, sys
from pathlib import Path
root = Path(sys.argv.pop(1))
folders = {"submodule_search_locations": [str(root)]}
spec = importlib.util.spec_from_file_location("tpas", root / "__init__.py", **folders)
sys.modules["tpas"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from tpas.__main__ import main
main(sys.argv[1:])
"""


def tpas(root: Path) -> list[str]:
    """The command line of a checkout, which need not be installed."""
    return [sys.executable, "-c", FIND_PACKAGE, str(root)]


def search(root: Path, images: Path, is_new: bool) -> str:
    """The answer; of a new folder, whose gallery is made first."""
    gallery = images.with_name(f"{images.name}.gallery")
    if is_new and gallery.exists():
        shutil.rmtree(gallery)
    words = ["search", str(images), QUESTION, "--model", str(ROOT / "demo_start"), "-k", "5"]
    return subprocess.run([*tpas(root), *words], capture_output=True, text=True, check=True).stdout


def open_page(root: Path, images: Path) -> None:
    """Returns as soon as the page has answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["app", str(images), "--model", str(ROOT / "demo_start"), "--port", str(port)]
    page = subprocess.Popen([*tpas(root), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + LONGEST
        while page.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LONGEST) as answer:
                    answer.read()
                return
            except OSError:  # it does not listen yet
                time.sleep(0.02)
        raise RuntimeError(f"tpas app of {root} did not answer")
    finally:
        page.terminate()
        page.wait()


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def programs_of(root: Path, images: Path, whose: str = "") -> dict[str, Callable[[], Any]]:
    return {
        f"search, a new folder{whose}": partial(search, root, images, True),
        f"search, the same again{whose}": partial(search, root, images, False),
        f"page{whose}": partial(open_page, root, images),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    checkouts = {"": ROOT} | ({" (other)": arguments.package.resolve()} if arguments.package else {})
    programs: dict[str, Callable[[], Any]] = {code: partial(run_python, code) for code in (TORCH, LIBRARIES)}
    with tempfile.TemporaryDirectory(prefix="tpas-start-up-") as folder:
        images = Path(folder) / "people"
        images.mkdir()
        for number in range(arguments.images):
            measuring.noise_image(100, 200, seed=number).save(images / f"{number:02}.jpg")
        for whose, root in checkouts.items():
            programs |= programs_of(root, images, whose)
        # Which also reads all files once, so that none is timed that was not in the memory.
        answers = {name: program() for name, program in programs.items()}
        if len({answer for answer in answers.values() if answer is not None}) != 1:
            raise RuntimeError(f"the searches have other answers: {answers}")
        seconds = measuring.time_in_turn(programs, arguments.repeats)
    rows = {
        name: {
            "seconds": statistics.median(own),
            "times_torch": measuring.median_ratio(seconds, name, TORCH),
            "times_libraries": measuring.median_ratio(seconds, name, LIBRARIES),
        }
        for name, own in seconds.items()
    }
    return {"rows": rows, "images": arguments.images, "cores": os.cpu_count()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=60, help="in the folder (default: 60)")
    parser.add_argument("--package", type=Path, help="another checkout of this repository, in turn with this")
    parser.add_argument("--repeats", type=int, default=7, help="default: 7")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.repeats = 6, 1
    result = measure(arguments)
    print(f"{'':44}{'seconds':>8}{'x torch':>9}{'x both':>8}")
    for name, row in result["rows"].items():
        print(f"{name:44}{row['seconds']:8.2f}{row['times_torch']:9.2f}{row['times_libraries']:8.2f}")
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
