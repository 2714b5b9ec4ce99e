// The page's part of wanscope's nodes: block toggles and strength bars that are set with the mouse, presets that stay
// in sync with them, the number of active blocks in the title, text reports in the node, and older input names.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { replaceNames } from "./aliases.js";
import { active, preset, presetName, shape, widgetValue } from "./patterns.js";

const OURS = (name) => name.startsWith("Wanscope") || FACTS.ids.has(name);
const FACTS = { ids: new Set(), aliases: {}, owners: {} };
const BAR_HEIGHT = 90;
const TOGGLE_HEIGHT = 26;
const COUNT = / \(\d+ of \d+ active\)$/;
const INSET = 24; // clicks nearer to the node's edge go to its sockets

async function loadFacts() {
  const answer = await api.fetchApi("/wanscope/facts");
  if (!answer.ok) return;
  const found = await answer.json();
  FACTS.aliases = found.aliases;
  FACTS.owners = found.owners;
  FACTS.ids = new Set(found.ids);
  const packs = [...new Set(Object.values(found.owners))];
  if (packs.length) {
    const detail = `${Object.keys(found.owners).length} node ids belong to ${packs.join(", ")}. Remove that pack to use wanscope's.`;
    app.extensionManager?.toast?.add({ severity: "warn", summary: "wanscope", detail, life: 15000 });
  }
}

/** Show a text in the node, below its widgets. */
function showText(node, text) {
  let widget = node.widgets?.find((w) => w.name === "wanscope_text");
  if (!widget) {
    const element = document.createElement("pre");
    element.className = "wanscope-text";
    element.style.cssText =
      "margin:0;padding:4px 6px;overflow:auto;font:11px/1.35 monospace;white-space:pre-wrap;background:#1b1b1f;color:#ccc;border-radius:4px;height:100%;box-sizing:border-box";
    widget = node.addDOMWidget("wanscope_text", "wanscope_text", element, {
      serialize: false,
      hideOnZoom: true,
      getMinHeight: () => 60,
    });
    widget.serialize = false;
    const size = node.computeSize();
    node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
  }
  widget.element.textContent = text;
  node.setDirtyCanvas?.(true, true);
}

/** Show the number of active blocks in the node's title. */
function setTitle(node, count, total) {
  if (node.title !== node.wanscopeShown) node.wanscopeTitle = node.title.replace(COUNT, ""); // the user changed it
  node.wanscopeShown = `${node.wanscopeTitle} (${count} of ${total} active)`;
  if (node.title !== node.wanscopeShown) node.title = node.wanscopeShown;
}

function findWidget(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Call `then` whenever the user changes a widget. */
function onChange(widget, then) {
  const before = widget.callback;
  widget.callback = function (...given) {
    const result = before?.apply(this, given);
    then(widget.value);
    return result;
  };
}

function hide(widget) {
  widget.hidden = true;
  widget.options = { ...widget.options, hidden: true };
  widget.computeSize = () => [0, -4];
  widget.draw = () => {};
}

/** Return the number of blocks of the model that this node is connected to downstream, if known, else `otherwise`. */
function depthFor(node, otherwise) {
  const seen = new Set([node.id]);
  const queue = [node];
  while (queue.length) {
    const one = queue.shift();
    for (const output of one.outputs ?? []) {
      for (const id of output.links ?? []) {
        const link = app.graph.links[id] ?? app.graph.links.get?.(id);
        const next = link && app.graph.getNodeById(link.target_id);
        if (!next || seen.has(next.id)) continue;
        seen.add(next.id);
        if (next.properties?.wanscope_blocks) return next.properties.wanscope_blocks;
        queue.push(next);
      }
    }
  }
  return otherwise;
}

/**
 * Add a row of bars or toggles as one widget: `read()` returns the values, `write(values)` stores them. Dragging sets
 * bars to the height of the mouse, and toggles to the value that the first one was set to.
 */
function bars(node, name, { toggles, read, write }) {
  const height = toggles ? TOGGLE_HEIGHT : BAR_HEIGHT;
  let painting = null;
  const widget = {
    name,
    type: "wanscope_bars",
    value: null,
    options: { serialize: false },
    serialize: false,
    computeSize: (width) => [width ?? 200, height + 6],
    draw(ctx, drawn, width, y) {
      this.last_y = y;
      const values = read();
      const left = INSET;
      const step = (width - 2 * left) / values.length;
      ctx.save();
      ctx.fillStyle = "#1b1b1f";
      ctx.fillRect(left, y, width - 2 * left, height);
      values.forEach((value, i) => {
        const tall = toggles ? (value ? height : 3) : Math.max(1, Number(value) * height);
        ctx.fillStyle = Number(value) ? "#5ab3e6" : "#3a3a42";
        ctx.fillRect(left + i * step + 0.5, y + height - tall, Math.max(1, step - 1), tall);
      });
      ctx.restore();
    },
    mouse(event, [x, y], drawn) {
      const type = event.type;
      if (type === "pointerup" || type === "mouseup") {
        painting = null;
        return true;
      }
      const down = type === "pointerdown" || type === "mousedown";
      if (!down && painting === null) return false;
      const values = [...read()];
      const left = INSET;
      const i = Math.floor(((x - left) / (drawn.size[0] - 2 * left)) * values.length);
      if (i < 0 || i >= values.length) return false;
      const level = widgetValue(1 - (y - this.last_y) / height);
      if (down) painting = toggles ? !values[i] : level;
      values[i] = toggles ? painting : level;
      write(values);
      drawn.setDirtyCanvas(true, true);
      return true;
    },
  };
  node.addCustomWidget(widget);
  return widget;
}

/** Set up the legacy pattern node: a preset and 40 toggles. */
function patternNode(node) {
  const chooser = findWidget(node, "preset");
  const blocks = node.widgets.filter((widget) => /^block_\d+$/.test(widget.name));
  const names = chooser.options.values.filter((name) => name !== "custom");
  const count = () => Math.min(blocks.length, depthFor(node, blocks.length));
  const read = () => blocks.slice(0, count()).map((widget) => Boolean(widget.value));
  const showCount = () => setTitle(node, active(read()), count());
  blocks.forEach(hide);
  onChange(chooser, (name) => {
    const mask = preset(name, count());
    if (mask) blocks.forEach((widget, i) => (widget.value = Boolean(mask[i])));
    showCount();
  });
  bars(node, "wanscope_toggles", {
    toggles: true,
    read,
    write(values) {
      blocks.forEach((widget, i) => (widget.value = Boolean(values[i]))); // 0 beyond the model's depth
      chooser.value = presetName(values, names);
      showCount();
    },
  });
  node.wanscopeRefresh = () => {
    const mask = preset(chooser.value, count());
    if (mask) blocks.forEach((widget, i) => (widget.value = Boolean(mask[i])));
    showCount();
  };
}

/** Set up the legacy strength node: a shape and 40 sliders. */
function strengthNode(node) {
  const chooser = findWidget(node, "pattern");
  const base = findWidget(node, "base_strength");
  const sliders = node.widgets.filter((widget) => /^block_\d+_strength$/.test(widget.name));
  const count = () => Math.min(sliders.length, depthFor(node, sliders.length));
  const read = () => sliders.slice(0, count()).map((widget) => Number(widget.value));
  const showCount = () => setTitle(node, active(read()), count());
  sliders.forEach(hide);
  const reshape = () => {
    const parameters = {
      peak: findWidget(node, "peak_block")?.value,
      spread: findWidget(node, "spread")?.value,
      size: findWidget(node, "step_size")?.value,
    };
    const values = shape(chooser.value, count(), base.value, parameters);
    if (values) values.forEach((value, i) => (sliders[i].value = widgetValue(value)));
    showCount();
  };
  const others = ["peak_block", "spread", "step_size"].map((name) => findWidget(node, name));
  for (const widget of [chooser, base, ...others]) {
    if (widget) onChange(widget, reshape);
  }
  bars(node, "wanscope_bars", {
    toggles: false,
    read,
    write(values) {
      sliders.forEach((widget, i) => (widget.value = values[i] ?? 0)); // 0 beyond the model's depth
      chooser.value = "custom";
      showCount();
    },
  });
  node.wanscopeRefresh = reshape;
}

/** Set up Block Strengths: a shape, the number of blocks, and one text of values. */
function valuesNode(node) {
  const chooser = findWidget(node, "shape");
  const base = findWidget(node, "base");
  const blocks = findWidget(node, "blocks");
  const text = findWidget(node, "values");
  const read = () => {
    const given = String(text.value ?? "").split(",").map((part) => Number(part.trim() || 0));
    return Array.from({ length: blocks.value }, (_, i) => (Number.isFinite(given[i]) ? given[i] : 0));
  };
  const showCount = () => setTitle(node, active(read()), blocks.value);
  const reshape = () => {
    const values = shape(chooser.value, blocks.value, base.value) ?? read();
    text.value = values.map(widgetValue).join(",");
    showCount();
  };
  for (const widget of [chooser, base, blocks]) onChange(widget, reshape);
  onChange(text, (given) => {
    const drawn = shape(chooser.value, blocks.value, base.value)?.map(widgetValue).join(",");
    if (!String(given).trim()) reshape();
    else if (given !== drawn) chooser.value = "custom";
    showCount();
  });
  bars(node, "wanscope_bars", {
    toggles: false,
    read,
    write(values) {
      text.value = values.join(",");
      chooser.value = "custom";
      showCount();
    },
  });
  node.wanscopeRefresh = () => {
    const depth = depthFor(node, blocks.value);
    if (depth !== blocks.value) blocks.value = depth;
    reshape();
  };
}

const EDITORS = {
  WanVideoBlockActivationBuilder: patternNode,
  WanVideoBlockStrengthBuilder: strengthNode,
  WanscopeBlockStrengths: valuesNode,
};

app.registerExtension({
  name: "wanscope",
  async setup() {
    api.addEventListener("wanscope.text", ({ detail }) => {
      const node = app.graph.getNodeById(Number(detail.node)) ?? app.graph.getNodeById(detail.node);
      if (node) showText(node, detail.text);
    });
  },
  async init() {
    await loadFacts();
  },
  async beforeConfigureGraph(graph) {
    replaceNames(graph, FACTS.aliases);
  },
  async beforeRegisterNodeDef(type, data) {
    if (!OURS(data.name)) return;
    const before = type.prototype.onExecuted;
    type.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.text?.length) showText(this, output.text.join(""));
      const depth = output?.wanscope_blocks?.[0];
      if (depth) {
        this.properties.wanscope_blocks = depth;
        for (const node of app.graph._nodes) node.wanscopeRefresh?.();
      }
    };
    const editor = EDITORS[data.name];
    if (editor) {
      const created = type.prototype.onNodeCreated;
      type.prototype.onNodeCreated = function () {
        created?.apply(this, arguments);
        editor(this);
        this.setSize(this.computeSize());
        queueMicrotask(() => this.wanscopeRefresh?.());
      };
      const configured = type.prototype.onConfigure;
      type.prototype.onConfigure = function () {
        configured?.apply(this, arguments);
        this.wanscopeRefresh?.();
      };
    }
  },
});
