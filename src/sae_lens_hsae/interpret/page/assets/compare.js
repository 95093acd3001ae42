// A parent and its children on the same contexts: which child explains which part, and what none does.

const COLOURS = 8; // the last one is shared by all further children

// Share of the parent's activation at each position that each child stands for; what is left, none does.
// A child at activation c along d_c moves x by c⟨d_c, d_p⟩/‖d_p‖² units of the parent; more than all of it counts as all.
function explainedShares(forest, parent, children, context) {
  return Array.from(context.shades, (shadeOfParent, i) => {
    const own = (shadeOfParent / SHADES) * forest.maximum[parent];
    if (!own) return null;
    const shares = children.map((child, j) => Math.max(0, ((context.childShades[j][i] / SHADES) * forest.maximum[child] * forest.parentProjection[child]) / own));
    const sum = shares.reduce((a, b) => a + b, 0);
    const scale = sum > 1 ? 1 / sum : 1;
    return { own, shares: shares.map((share) => share * scale), none: Math.max(0, 1 - sum) };
  });
}

async function compareView(forest, parent) {
  const data = await forest.feature(parent);
  const children = Array.from(forest.children(parent));
  const contexts = [...data.top, ...data.sampled.filter((each) => !data.top.some((top) => top.number === each.number))];
  const shares = contexts.map((context) => explainedShares(forest, parent, children, context));
  const mass = new Float64Array(children.length);
  let total = 0, unexplained = 0;
  for (const token of shares.flat()) {
    if (!token) continue;
    total += token.own;
    unexplained += token.own * token.none;
    token.shares.forEach((share, j) => { mass[j] += token.own * share; });
  }
  const order = children.map((_, j) => j).sort((a, b) => mass[b] - mass[a] || a - b);
  const colour = new Map(order.map((j, rank) => [j, Math.min(rank, COLOURS - 1)]));
  const title = `${forest.id(parent)} and its children`;
  const parts = [
    ...pathNode(forest, parent),
    element("h1", { tabindex: "-1" }, element("span", { class: "id" }, forest.id(parent)), " ", element("bdi", {}, forest.name(parent)), ` and its ${forest.nChildren[parent]} ${forest.nChildren[parent] === 1 ? "child" : "children"}${hiddenPhrase(forest, parent)}`),
    element("p", {}, element("a", { class: "action", href: `#/f/${forest.id(parent)}` }, "Back to the feature")),
  ];
  if (!children.length) return { title, parts: [...parts, element("p", { class: "notice" }, "This feature has no children.")] };
  if (!total) return { title, parts: [...parts, element("p", { class: "notice" }, "This feature never fired on this text, so there is nothing to compare on.")] };

  const box = element("div", { class: "comparison" });
  const choose = (j) => {
    const chosen = box.dataset.only === String(j) ? "" : String(j);
    if (chosen === "") delete box.dataset.only;
    else box.dataset.only = chosen;
    for (const button of box.querySelectorAll("button.only")) button.setAttribute("aria-pressed", String(button.dataset.child === chosen));
    for (const part of box.querySelectorAll(".part")) part.classList.toggle("faded", chosen !== "" && part.dataset.child !== chosen);
  };
  const line = (j, name, share, className) => element("tr", {},
    element("td", {}, element("button", { type: "button", class: "only", "data-child": j, "aria-pressed": "false", "aria-label": j === "none" ? "Show only what no child explains" : `Show only child ${forest.id(children[j])}`, onclick: () => choose(j) }, element("span", { class: `swatch ${className}`, "aria-hidden": "true" }), "only this")),
    element("td", {}, name),
    element("td", { class: "value" }, percent(share)));
  const shown = order.slice(0, MANY);
  box.append(
    element("p", {}, "Share of the parent's activation in the contexts below that each child accounts for: the child's activation times its direction, seen along the parent's direction."),
    scrolling("Shares of the children",
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Show"), element("th", { scope: "col" }, "Child"), element("th", { scope: "col", class: "value" }, "Share"))),
      element("tbody", {}, shown.map((j) => line(j, featureLink(forest, children[j]), mass[j] / total, `colour-${colour.get(j)}`)),
        line("none", "No child", unexplained / total, "nobody"))),
  );
  if (order.length > shown.length) box.append(element("p", { class: "muted" }, `${order.length - shown.length} more children account for less each.`));
  const list = element("ol", { class: "contexts" });
  contexts.forEach((context, k) => {
    const row = element("p", { class: "context compared", dir: "auto" });
    const texts = Array.from(context.tokens, (token) => forest.tokens[token]);
    // Boxes stand in the direction of the line; those of words that run against it need a box of their own.
    const isReversed = (text) => { const letter = /\p{L}/u.exec(text); return letter && RIGHT_TO_LEFT.test(letter[0]); };
    const ofLine = isReversed(Array.from(context.tokens, (token, i) => (token && !forest.isSeparator[token] ? texts[i] : "")).join(""));
    let run = null;
    context.tokens.forEach((token, i) => {
      if (!token) return;
      const at = shares[k][i];
      if (forest.isSeparator[token] && !at) {
        run = null;
        row.append(partingNode(forest, context.tokens, i) ?? "");
        return;
      }
      const node = tokenNode(texts, i, at ? describe(forest, children, at) : undefined);
      shade(node, "own", context.shades[i]);
      const bar = element("span", { class: "bar", "aria-hidden": "true" });
      if (at) {
        const add = (share, child, className) => {
          if (share < 0.01) return;
          const part = element("span", { class: `part ${className}`, "data-child": child });
          part.style.flexGrow = share.toFixed(3);
          bar.append(part);
        };
        order.forEach((j) => add(at.shares[j], j, `colour-${colour.get(j)}`));
        add(at.none, "none", "nobody");
      }
      const own = isReversed(texts[i]);
      if (own === ofLine) run = null;
      else if (own !== null && !run) row.append(run = element("span", { class: "run", dir: own ? "rtl" : "ltr" }));
      (run ?? row).append(element("span", { class: "column" }, node, bar));
    });
    list.append(element("li", {}, element("span", { class: "peak" }, significant(context.peak)), row));
  });
  box.append(element("p", { class: "legend" }, "Shaded: the parent. The bar below a token is divided among the children that fire there; striped is what none explains."), list);
  return { title, parts: [...parts, section("Who explains what", box)] };
}

function describe(forest, children, at) {
  const parts = children.map((child, j) => [at.shares[j], child]).filter(([share]) => share >= 0.01).sort((a, b) => b[0] - a[0]).slice(0, 5)
    .map(([share, child]) => `${forest.id(child)} ${percent(share)}`);
  return [`parent ${significant(at.own)}`, ...parts, at.none >= 0.01 ? `no child ${percent(at.none)}` : ""].filter(Boolean).join(", ");
}
