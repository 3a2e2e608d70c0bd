"""What importing datasets imports."""

from __future__ import annotations

import subprocess
import sys

ASK = """
import sys
import minitrain.data
for name in minitrain.data.__all__:
    getattr(minitrain.data, name)
print(sorted({"torch", "pandas", "tensorflow", "PIL", "sklearn"} & set(sys.modules)))
"""


def test_datasets_need_no_framework():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_datasets_work_where_there_is_no_torch():
    ask = """
import sys
sys.modules["torch"] = None
import minitrain.data
ds = minitrain.data.range(6).map_batches(lambda batch: {"x": batch["id"] % 2}).random_shuffle()
print(ds.count(), ds.sum("x"), [len(batch["x"]) for batch in ds.iter_batches(batch_size=4)])
"""
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "6 3 [4, 2]\n"
