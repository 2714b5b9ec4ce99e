"""The examples of docs/models.md that need no large model run, and its table names every variant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from wanscope.wan.variants import VARIANTS

torch.set_num_threads(1)
TEXT = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
EXAMPLES = re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.strip().splitlines()[-1][:40] for code in EXAMPLES])
def test_examples(code, capsys):
    if "loras=" in code:
        compile(code, "docs/models.md", "exec")
        return
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_every_variant_is_named():
    shown = TEXT.replace("`wan2.1-i2v-14b-480p`, `-720p`", "`wan2.1-i2v-14b-480p`, `wan2.1-i2v-14b-720p`")
    assert all(f"`{name}`" in shown for name in VARIANTS)
