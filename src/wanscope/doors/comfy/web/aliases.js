// Saved graphs that use older input names.

/** Replace older input names and types in a saved graph, in place, and return it. */
export function replaceNames(graph, aliases) {
  for (const node of graph?.nodes ?? []) {
    const names = aliases[node.type];
    for (const input of node.inputs ?? []) {
      const target = names?.[input.name];
      if (target && !node.inputs.some((other) => other.name === target)) input.name = target;
      if (input.type === "WAN_ACTIVATION") input.type = "STRING";
      if (input.widget && names?.[input.widget.name]) input.widget.name = names[input.widget.name];
    }
    for (const output of node.outputs ?? []) if (output.type === "WAN_ACTIVATION") output.type = "STRING";
  }
  for (const link of graph?.links ?? []) if (Array.isArray(link) && link[5] === "WAN_ACTIVATION") link[5] = "STRING";
  return graph;
}
