"""The nodes in a real browser on a real ComfyUI: COMFYUI_PATH=... pytest -m browser tests/browser."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from helpers.comfy_server import EXAMPLES

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    from helpers.comfy_server import Comfy

    server = Comfy(tmp_path_factory.mktemp("comfy"))
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        found = chromium.new_page(viewport={"width": 1600, "height": 900})
        found.errors = []
        found.on("pageerror", lambda error: found.errors.append(str(error)))
        found.request.post(f"{server.url}/settings", data={"Comfy.TutorialCompleted": True})
        found.goto(server.url)
        ready = "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.WanscopeBlockStrengths)"
        found.wait_for_function(ready, timeout=300_000)
        yield found
        chromium.close()
    server.stop()


OPEN = """async (kind) => {
  app.graph.clear();
  const node = LiteGraph.createNode(kind);
  node.pos = [200, 150];
  app.graph.add(node);
  await new Promise((r) => setTimeout(r, 300));
  app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0];
  app.canvas.draw(true, true);
  await new Promise((r) => setTimeout(r, 300));
}"""
WIDGETS = "() => Object.fromEntries(app.graph._nodes[0].widgets.map((w) => [w.name, w.value]))"
TITLE = "() => app.graph._nodes[0].title"
CHOOSE = """([name, value]) => {
  const widget = app.graph._nodes[0].widgets.find((w) => w.name === name);
  widget.value = value; widget.callback?.(value);
}"""
PLACE = """(name) => {
  const node = app.graph._nodes[0];
  const widget = node.widgets.find((w) => w.name === name);
  const box = app.canvas.canvas.getBoundingClientRect();
  return [box.left + node.pos[0], box.top + node.pos[1] + (widget.last_y ?? widget.y), node.size[0]];
}"""


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.json")), ids=lambda file: file.stem)
def test_examples_load_without_missing_wanscope_nodes(page, file):
    missing = page.evaluate(
        """async (graph) => {
          await app.loadGraphData(graph);
          return app.graph._nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type);
        }""",
        json.loads(file.read_text()),
    )
    for _ in range(2):
        page.keyboard.press("Escape")
    wrapper_only = ("WanVideo", "LoadWanVideo")
    from wanscope.doors.comfy import NODES

    assert [kind for kind in missing if kind in NODES or not kind.startswith(wrapper_only)] == []


# the front end's own graph of an example, with the tiny checkpoints and stubs that exist
SMALL = """(graph) => {
  for (const node of graph.nodes) {
    const stand_in = {CLIPLoader: "StandInClip", VAELoader: "StandInVae"}[node.type];
    if (stand_in) { node.type = stand_in; node.inputs = []; node.widgets_values = []; node.properties = {}; }
    if (node.type === "UNETLoader") node.widgets_values[0] = "tiny.safetensors";
    if (node.type === "EmptyHunyuanLatentVideo") node.widgets_values = [64, 64, 9, 1];
    if (node.type === "KSampler") node.widgets_values = [1, "fixed", 3, 4, "euler", "simple", 1];
  }
  return app.loadGraphData(graph);
}"""
SHOWN = """(kind) => app.graph._nodes.find((n) => n.type === kind)
  ?.widgets?.find((w) => w.name === "wanscope_text")?.element.textContent ?? ''"""


def test_an_example_queued_from_the_page_shows_what_was_applied(page):
    page.evaluate(SMALL, json.loads((EXAMPLES / "simple_injection.json").read_text()))
    page.evaluate("() => app.queuePrompt(0)")
    said = f"""() => ({SHOWN})("WanscopeEditReport").includes(" due")"""
    page.wait_for_function(said, timeout=300_000)
    # late blocks of four: the last one, in three steps
    assert "applied 3 of 3 due: blocks 3; cond; steps 0 to 2" in page.evaluate(SHOWN, "WanscopeEditReport")
    assert "acted in stage 1" in page.evaluate(SHOWN, "WanscopeCheckEdits")


def test_a_fault_is_shown_on_the_page(page):
    page.evaluate(SMALL, json.loads((EXAMPLES / "simple_injection.json").read_text()))
    page.evaluate("""() => {
      const node = app.graph._nodes.find((n) => n.type === "WanscopeInjectPrompt");
      node.widgets.find((w) => w.name === "blocks").value = "99";
      window.wanscopeFault = "";
      app.api.addEventListener("execution_error", ({ detail }) => {
        window.wanscopeFault = `${detail.node_type}: ${detail.exception_message}`;
      });
      app.queuePrompt(0);
    }""")
    page.wait_for_function("() => window.wanscopeFault", timeout=300_000)
    found = page.evaluate("() => window.wanscopeFault")
    assert found.startswith("WanscopeInjectPrompt: there is no block 99")
    for _ in range(2):
        page.keyboard.press("Escape")


def test_a_dragged_bar_sets_the_value_that_is_sent(page):
    page.evaluate(OPEN, "WanscopeBlockStrengths")
    page.evaluate(CHOOSE, ["blocks", 4])
    page.evaluate(CHOOSE, ["shape", "linear_rise"])
    assert page.evaluate(WIDGETS)["values"] == "0,0.17,0.33,0.5"
    assert "(3 of 4 active)" in page.evaluate(TITLE)
    left, top, width = page.evaluate(PLACE, "wanscope_bars")
    step = (width - 48) / 4
    page.mouse.move(left + 24 + 0.5 * step, top + 45)
    page.mouse.down()
    page.mouse.move(left + 24 + 1.5 * step, top + 45, steps=4)
    page.mouse.up()
    found = page.evaluate(WIDGETS)
    values = [float(v) for v in found["values"].split(",")]
    assert found["shape"] == "custom"
    assert values[0] == pytest.approx(0.5, abs=0.1) and values[1] == pytest.approx(0.5, abs=0.1)
    assert values[2:] == [0.33, 0.5]
    assert "(4 of 4 active)" in page.evaluate(TITLE)


def test_presets_and_toggles_stay_in_sync(page):
    page.evaluate(OPEN, "WanVideoBlockActivationBuilder")
    page.evaluate(CHOOSE, ["preset", "late_blocks"])
    found = page.evaluate(WIDGETS)
    assert [found[f"block_{i}"] for i in (0, 29, 30, 39)] == [False, False, True, True]
    assert "(10 of 40 active)" in page.evaluate(TITLE)
    left, top, width = page.evaluate(PLACE, "wanscope_toggles")
    step = (width - 48) / 40
    page.mouse.click(left + 24 + 0.5 * step, top + 13)
    found = page.evaluate(WIDGETS)
    assert found["block_0"] is True and found["preset"] == "custom"
    assert "(11 of 40 active)" in page.evaluate(TITLE)
    page.mouse.click(left + 24 + 0.5 * step, top + 13)
    assert page.evaluate(WIDGETS)["preset"] == "late_blocks"
    page.evaluate("() => { app.graph._nodes[0].title = 'mine'; app.graph._nodes[0].wanscopeRefresh(); }")
    assert page.evaluate(TITLE) == "mine (10 of 40 active)"


def test_toggles_beyond_the_models_depth_are_cleared(page):
    page.evaluate(OPEN, "WanVideoBlockActivationBuilder")
    page.evaluate(CHOOSE, ["preset", "all"])
    shallow = """() => {
      const viewer = LiteGraph.createNode("WanVideoBlockActivationViewer");
      viewer.pos = [900, 150];
      app.graph.add(viewer);
      viewer.properties.wanscope_blocks = 30;
      const slot = viewer.inputs.findIndex((input) => input.name === "block_activations");
      app.graph._nodes[0].connect(0, viewer, slot);
      app.canvas.draw(true, true);
    }"""
    page.evaluate(shallow)
    left, top, width = page.evaluate(PLACE, "wanscope_toggles")
    page.mouse.click(left + 24 + 0.5 * (width - 48) / 30, top + 13)
    page.evaluate("() => app.graph.remove(app.graph._nodes.find((n) => n.type === 'WanVideoBlockActivationViewer'))")
    found = page.evaluate(WIDGETS)
    assert [found[f"block_{i}"] for i in (0, 1, 29, 30, 39)] == [False, True, True, False, False]
    assert "(29 of 30 active)" in page.evaluate(TITLE)


def test_older_names_in_a_saved_graph_are_replaced(page):
    graph = {"nodes": [{"type": "WanVideoActivationEditor", "inputs": [{"name": "activation_pattern", "type": "WAN_ACTIVATION"}]}]}  # fmt: skip  # noqa: E501
    found = page.evaluate(
        """async (graph) => (await import("/extensions/wanscope/aliases.js")).replaceNames(
          graph, {WanVideoActivationEditor: {activation_pattern: "block_activations"}})""",
        graph,
    )
    assert found["nodes"][0]["inputs"] == [{"name": "block_activations", "type": "STRING"}]


def test_no_script_raised_an_error(page):
    assert [error for error in page.errors if "wanscope" in error] == []
