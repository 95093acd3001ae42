// Contexts: tokens shaded by how strongly a feature fires on them.

const SHADES = 255;

function shade(node, name, value) {
  if (value > 0) {
    node.classList.add(name);
    node.style.setProperty(`--${name}`, (0.15 + 0.85 * (value / SHADES)).toFixed(3));
  }
}

// A token is kept apart from its neighbours only where a mark in it would have acted on them.
function tokenClass(text) { return ACTING.test(text.replaceAll(/[\n\u200c\u200d]/g, "")) ? "token apart" : "token"; }

function tokenNode(texts, i, title) {
  const text = texts[i], between = [texts[i - 1], texts[i + 1]];
  if (text.length <= MAX_SHOWN) return element("span", { class: tokenClass(text), title }, visible(text, ...between));
  const node = element("button", { type: "button", class: `${tokenClass(text)} long`, title, "aria-expanded": false }, clipped(text));
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

// One context, shaded for the feature; the bar below each token is the parent. Some tokens may be meant: outlined.
function contextNode(forest, feature, context, meant = new Set()) {
  const parent = forest.parents[feature];
  const line = element("p", { class: "context", dir: "auto" });
  const texts = Array.from(context.tokens, (token) => forest.tokens[token]);
  context.tokens.forEach((token, i) => {
    if (!token) return;
    const own = (context.shades[i] / SHADES) * forest.maximum[feature];
    const above = parent >= 0 ? (context.parentShades[i] / SHADES) * forest.maximum[parent] : 0;
    const parts = [own ? `activation ${significant(own)}` : "", above ? `parent ${significant(above)}` : ""].filter(Boolean);
    if (forest.isSeparator[token] && !parts.length) {
      line.append(partingNode(forest, context.tokens, i) ?? "");
      return;
    }
    const node = tokenNode(texts, i, parts.join(", ") || undefined);
    if (meant.has(i)) node.classList.add("meant");
    shade(node, "own", context.shades[i]);
    if (parent >= 0) shade(node, "above", context.parentShades[i]);
    line.append(node);
  });
  return element("li", {}, element("span", { class: "peak" }, significant(context.peak)), line);
}

// `meant`: which of a context's tokens to outline.
function contextList(forest, feature, contexts, none, meant = () => undefined) {
  if (!contexts.length) return element("p", { class: "muted" }, none);
  return element("ol", { class: "contexts" }, contexts.map((context) => contextNode(forest, feature, context, meant(context))));
}

// The token that the first shades are strongest on where the others are silent.
function onlyIn(shades, others) {
  let at = -1;
  shades.forEach((value, i) => { if (value && !others[i] && !(value <= shades[at])) at = i; });
  return new Set([at]);
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
