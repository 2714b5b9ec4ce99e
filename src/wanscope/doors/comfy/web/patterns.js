// Block presets and strength shapes, the same as in edit/blocks.py and edit/strengths.py. Pure functions; tests compare
// them with the Python ones.

/** The longer preset names of the legacy nodes. */
const ALIASES = { early_blocks: "early", mid_blocks: "mid", late_blocks: "late" };

/**
 * Return the blocks of a preset for a depth of `count`, or null if the name is not a preset.
 * @param {string} name @param {number} count @returns {boolean[] | null}
 */
export function preset(name, count) {
  const quarter = Math.floor(count / 4);
  const half = Math.floor(count / 2);
  const rules = {
    all: () => true,
    none: () => false,
    first_half: (i) => i < half,
    second_half: (i) => i >= half,
    early: (i) => i < quarter,
    mid: (i) => i >= quarter && i < count - quarter,
    late: (i) => i >= count - quarter,
    alternating: (i) => i % 2 === 0,
    sparse: (i) => i % 4 === 0,
  };
  const rule = rules[ALIASES[name] ?? name];
  return rule ? Array.from({ length: count }, (_, i) => rule(i)) : null;
}

/**
 * Return the first of `names` whose preset equals the pattern, or "custom".
 * @param {boolean[]} mask @param {string[]} names
 */
export function presetName(mask, names) {
  const found = names.find((name) => preset(name, mask.length)?.every((on, i) => on === mask[i]));
  return found ?? "custom";
}

/**
 * Return the strengths of a shape, or null for `random`, which is drawn in Python, and for an unknown name.
 * @param {string} name @param {number} count @param {number} base
 * @param {{peak?: number, spread?: number, size?: number}} parameters given for 40 blocks, scaled to `count`
 * @returns {number[] | null}
 */
export function shape(name, count, base, parameters = {}) {
  const scaled = (value, toLast) => (count === 40 ? value : toLast ? Math.round((value * (count - 1)) / 39) : (value * count) / 40);
  const peak = scaled(parameters.peak ?? 20, true);
  const spread = scaled(parameters.spread ?? 5, false);
  const size = Math.max(1, Math.round(scaled(parameters.size ?? 5, false)));
  const rise = (i) => i / Math.max(1, count - 1);
  const bell = (i) => Math.exp(-(((i - peak) / spread) ** 2) / 2);
  const focus = (part) => (i) => (preset(part, count)[i] ? 1 : 0.1);
  const rules = {
    uniform: () => 1,
    linear_decay: (i) => 1 - rise(i),
    linear_rise: rise,
    gaussian_peak: bell,
    inverse_gaussian: (i) => 1 - bell(i),
    sine_wave: (i) => (1 + Math.sin((2 * Math.PI * i) / count)) / 2,
    stepped: (i) => (Math.floor(i / size) % 2 === 0 ? 1 : 0),
    focus_early: focus("early"),
    focus_mid: focus("mid"),
    focus_late: focus("late"),
  };
  const rule = rules[name];
  return rule ? Array.from({ length: count }, (_, i) => base * rule(i)) : null;
}

/** Return the number of blocks with a nonzero strength. @param {(number | boolean)[]} values */
export function active(values) {
  return values.filter((value) => Number(value) !== 0).length;
}

/** Return a value clamped to 0..1 and rounded to the two decimals of a widget. @param {number} value */
export function widgetValue(value) {
  return Math.round(Math.min(1, Math.max(0, value)) * 100) / 100;
}
