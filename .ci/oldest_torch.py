"""Headers and libraries of the oldest supported torch in FOLDER, to build against.

Its wheel is downloaded without its dependencies, which are gigabytes, and is not complete: with
FOLDER on PYTHONPATH setup.py finds it, but it cannot be imported.

    python .ci/oldest_torch.py FOLDER
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OLDEST = "2.11"
FILES = {f"torch/{name}" for name in ("__init__.py", "version.py")}
FILES |= {f"torch/lib/lib{name}.so" for name in ("c10", "torch", "torch_cpu")}


def main(folder: str) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", downloads, f"torch=={OLDEST}.*"], check=True)
        (wheel,) = Path(downloads).glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            headers = [name for name in names if name.startswith("torch/include/")]
            archive.extractall(folder, [*headers, *FILES])
        print(f"{wheel.name}: headers and libraries in {folder}")


main(sys.argv[1])
