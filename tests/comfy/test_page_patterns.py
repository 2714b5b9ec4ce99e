"""The page's presets and shapes equal those in Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from wanscope.doors.comfy.patterns import PRESETS, SHAPES, build_strengths, parse_strength_input
from wanscope.edit.blocks import parse_blocks

WEB = Path(__file__).resolve().parents[2] / "src/wanscope/doors/comfy/web"
DEPTHS = (4, 7, 30, 40)
SCRIPT = """
import { readFileSync } from "node:fs";
const source = readFileSync(process.argv[1], "utf8");
const { preset, presetName, shape } = await import("data:text/javascript," + encodeURIComponent(source));
const [presets, shapes, depths] = JSON.parse(process.argv[2]);
const out = {};
for (const n of depths) {
  out[n] = { presets: {}, shapes: {}, names: {} };
  for (const p of presets) {
    out[n].presets[p] = preset(p, n);
    out[n].names[p] = presetName(preset(p, n), presets);
  }
  for (const s of shapes) out[n].shapes[s] = shape(s, n, 0.8);
}
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_presets_and_shapes_agree_at_every_depth():
    presets = [name for name in PRESETS if name != "custom"]
    shapes = [name for name in SHAPES if name not in ("custom", "random")]
    given = json.dumps([presets, shapes, DEPTHS])
    command = ["node", "--input-type=module", "-e", SCRIPT, str(WEB / "patterns.js"), given]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for count in DEPTHS:
        here = found[str(count)]
        for name in presets:
            assert here["presets"][name] == list(parse_blocks(name, count).mask), (name, count)
            assert parse_blocks(here["names"][name], count) == parse_blocks(name, count)
        for name in shapes:
            expected = parse_strength_input(build_strengths(name, 0.8, 20, 5.0, 5, {}), count).values
            assert here["shapes"][name] == pytest.approx(expected), (name, count)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("file", sorted(WEB.glob("*.js")), ids=lambda file: file.name)
def test_scripts_parse(file):
    subprocess.run(["node", "--check", "--experimental-default-type=module", str(file)], check=True)
