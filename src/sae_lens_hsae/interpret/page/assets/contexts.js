// Contexts: tokens shaded by how strongly a feature fires on them.

const SHADES = 255;

function shade(node, name, value) {
  if (value > 0) {
    node.classList.add(name);
    node.style.setProperty(`--${name}`, (0.15 + 0.85 * (value / SHADES)).toFixed(3));
  }
}

function tokenNode(text, title) {
  if (text.length <= MAX_SHOWN) return element("span", { class: "token", title }, visible(text));
  const node = element("button", { type: "button", class: "token long", title, "aria-expanded": false }, clipped(text));
  node.addEventListener("click", () => {
    const open = node.getAttribute("aria-expanded") === "true";
    node.textContent = open ? clipped(text) : visible(text);
    node.setAttribute("aria-expanded", String(!open));
  });
  return node;
}

// Where one text ends and the next begins: one mark for all tokens that stand there.
function partingNode(forest, tokens, i) {
  if (i > 0 && forest.isSeparator[tokens[i - 1]]) return null;
  return element("span", { class: "parting", title: clipped(forest.tokens[tokens[i]]) }, " ¶ ");
}

// One context, shaded for the feature; the bar below each token is the parent.
function contextNode(forest, feature, context) {
  const parent = forest.parents[feature];
  const line = element("p", { class: "context", dir: "ltr" });
  context.tokens.forEach((token, i) => {
    if (!token) return;
    const own = (context.shades[i] / SHADES) * forest.maximum[feature];
    const above = parent >= 0 ? (context.parentShades[i] / SHADES) * forest.maximum[parent] : 0;
    const parts = [own ? `activation ${significant(own)}` : "", above ? `parent ${significant(above)}` : ""].filter(Boolean);
    if (forest.isSeparator[token] && !parts.length) {
      line.append(partingNode(forest, context.tokens, i) ?? "");
      return;
    }
    const node = tokenNode(forest.tokens[token], parts.join(", ") || undefined);
    shade(node, "own", context.shades[i]);
    if (parent >= 0) shade(node, "above", context.parentShades[i]);
    line.append(node);
  });
  return element("li", {}, element("span", { class: "peak" }, significant(context.peak)), line);
}

function contextList(forest, feature, contexts, none) {
  if (!contexts.length) return element("p", { class: "muted" }, none);
  return element("ol", { class: "contexts" }, contexts.map((context) => contextNode(forest, feature, context)));
}

function shadingLegend(forest, feature) {
  const own = element("span", { class: "token own" }, "this feature");
  own.style.setProperty("--own", "0.8");
  const parts = [own];
  if (forest.parents[feature] >= 0) {
    const above = element("span", { class: "token above" }, parentPhrase(forest, feature));
    above.style.setProperty("--above", "1");
    parts.push(" ", above);
  }
  return element("p", { class: "legend" }, "Shaded: ", parts, ". The number in front is the highest activation.");
}
