"""What `import rga_fast` needs: torch alone."""

import subprocess
import sys

BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import rga_fast, torch
assert rga_fast.RGA(8, (4, 4))(torch.randn(2, 8, 4, 4)).shape == (2, 8, 4, 4)
assert "torch._dynamo" not in sys.modules  # seconds, for those who don't compile
loaded = [name for name in sys.modules if name.startswith("rga_fast.reid") and sys.modules[name]]
assert not loaded, loaded
"""


def test_attention_imports_neither_triton_nor_extension_nor_images():
    blocked = ["triton", "rga_fast._C", "PIL", "torchvision", "rich", "yaml", "safetensors"]
    subprocess.run([sys.executable, "-c", BLOCKED.format(blocked=blocked)], check=True)
