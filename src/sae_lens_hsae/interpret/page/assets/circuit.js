// A circuit: a column for each hook point, coarse features that open into their children, edges between those one sees.

function circuitGraph(forest, { columns, edges }) {
  const lines = drawing("svg", { class: "edges", "aria-hidden": "true" });
  const holder = element("div", { class: "circuit" }, lines);
  const rows = new Map(); // of features, by column and name
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

  columns.forEach((column, i) => {
    const ids = new Set(column.nodes.map(([feature]) => feature));
    const link = ([feature, , name, , label]) => {
      if (column.here) return featureLink(forest, feature);
      const shown = [element("span", { class: "id" }, name), " ", element("bdi", {}, clipped(label))];
      return column.page === null ? element("span", {}, shown) : element("a", { href: `${column.page}#feature=${name}` }, shown);
    };
    const make = (node) => {
      const below = column.nodes.filter(([, parent]) => parent === node[0]);
      const row = element("span", { class: "node" }, element("span", { class: "effect" }, signed(node[3])), " ", link(node));
      rows.set(`${i} ${node[2]}`, row);
      return element("li", {}, below.length ? element("details", {}, element("summary", {}, row), element("ul", { class: "plain" }, below.map(make))) : row);
    };
    const tops = column.nodes.filter(([, parent]) => !ids.has(parent));
    holder.append(element("div", {}, element("h3", {}, column.hook),
      tops.length ? longList("plain", tops, make) : element("p", { class: "muted" }, "No feature is over the threshold here."),
      column.errors.length ? element("p", { class: "muted" }, `Not reconstructed: ${column.errors.map(([level, effect]) => `level ${level} ${signed(effect)}`).join(", ")}`) : null));
  });

  // Whether all that it lies in is open.
  const isShown = (row) => {
    for (let at = row.closest("ul").closest("details"); at; at = at.parentElement.closest("details")) if (!at.open) return false;
    return true;
  };
  const most = Math.max(...edges.map(([, , , effect]) => Math.abs(effect)));
  const draw = () => {
    const box = holder.getBoundingClientRect();
    lines.replaceChildren(...edges.flatMap(([column, source, target, effect]) => {
      const from = rows.get(`${column} ${source}`), to = rows.get(`${column + 1} ${target}`);
      if (!from || !to || !isShown(from) || !isShown(to)) return [];
      const [a, b] = [from, to.closest("summary") ?? to].map((row) => row.getBoundingClientRect());
      const x = a.right - box.left + 3, y = (a.top + a.bottom) / 2 - box.top, toX = b.left - box.left - 3, toY = (b.top + b.bottom) / 2 - box.top;
      const middle = (x + toX) / 2;
      return [drawing("path", { d: `M${x} ${y}C${middle} ${y} ${middle} ${toY} ${toX} ${toY}`, class: effect < 0 ? "edge against" : "edge", "stroke-width": 1 + (4 * Math.abs(effect)) / most })];
    }));
  };
  holder.addEventListener("toggle", draw, true);
  new ResizeObserver(draw).observe(holder);
  return element("div", {}, element("p", { class: "muted" }, "In logits, what the answer loses against its foil where a feature is as on the other prompt. The levels are views of the same activations: do not add them up. ",
    edges.length ? "A line is what of it goes through a feature of the next hook point, dashed where that helps the foil." : ""),
  element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Circuit" }, holder));
}
