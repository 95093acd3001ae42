// Search by token, label and context text.

const MAX_CONTEXTS = 40;

function encodeQuery(text) {
  // A lone surrogate has no URL form.
  return encodeURIComponent(text.slice(0, 200).replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd"));
}

// As texts are compared: without what keeps the parts of a name in their places, should it come from this page.
function plainQuery(query) {
  return query.replace(/[\u2068\u2069]/g, "").trim().toLowerCase();
}

function featuresByText(forest, text) {
  const fit = forest.finder(text);
  const found = [];
  for (let f = 0; f < forest.n; f++) {
    const score = fit(f);
    if (score) found.push([score, f]);
  }
  const clear = (f) => forest.detection[f] || 0;
  return found.sort(([a, f], [b, g]) => (a === b ? clear(g) - clear(f) || f - g : b - a)).map(([, f]) => f);
}

// The tokens that a feature was found by, of the words that its name lacks.
function foundOn(forest, feature, text) {
  const name = forest.nameParts(feature).join(" · ").toLowerCase(), tokens = forest.strongestTokens(feature);
  const lacking = text.trim() ? queryWords(text).filter((word) => !name.includes(word)) : [];
  const on = new Set(lacking.map((word) => tokens.find((token) => token.trim().toLowerCase() === word) ?? tokens.find((token) => token.toLowerCase().includes(word))).filter(Boolean));
  return Array.from(on, (token) => [" · on ", element("strong", {}, element("bdi", {}, clipped(token.trim(), 24)))]).flat();
}

// Where a feature stands: the names above it, and how much is below.
function placeNode(forest, feature) {
  const above = forest.trail(feature).slice(0, -1), nBelow = forest.treeSize(feature) - 1;
  if (!above.length && !nBelow) return element("span", { class: "place" }, "stands alone");
  const rest = nBelow ? `${nBelow.toLocaleString("en")} ${nBelow === 1 ? "feature" : "features"} below it` : "";
  return element("span", { class: "place" }, above.length ? "in " : "", above.map((each, i) => [i ? " › " : "", featureLink(forest, each)]).flat(), above.length && rest ? " · " : "", rest);
}

const PARTING = "\ud800"; // no query holds it, see above: so none goes across it
const utf8 = new TextEncoder();

// Tokens as one text, without the bytes that come before the character which a later token completes.
function joinedText(texts) {
  return texts.join("").replace(/((?:<0x[0-9A-F]{2}>)+)([^\x00-\x7f])/gu, (whole, bytes, character) => {
    const parts = Array.from(utf8.encode(character), (byte) => `<0x${byte.toString(16).toUpperCase()}>`);
    while (parts.pop() && !bytes.endsWith(parts.join("")));
    return bytes.slice(0, bytes.length - parts.join("").length) + character;
  });
}

// Which of some tokens a text lies on: as they are read, or as they are shown, since one may search for a token of bytes.
function tokensOf(texts, text) {
  const hits = new Set(), shown = texts.join(""), read = joinedText(texts);
  for (const joined of new Set([shown, read])) {
    const whole = joined.toLowerCase();
    if (!whole.includes(text)) continue;
    const starts = [0]; // in lower case, which may be longer
    for (let i = 1; i <= texts.length; i++) starts.push(joined === shown ? starts[i - 1] + texts[i - 1].toLowerCase().length : Math.max(starts[i - 1], whole.length - joinedText(texts.slice(i)).toLowerCase().length));
    for (let from = whole.indexOf(text); from >= 0; from = whole.indexOf(text, from + 1))
      texts.forEach((_, i) => { if (starts[i] < from + text.length && (starts[i + 1] > from || starts[i] === from)) hits.add(i); });
  }
  return hits;
}

// Of each feature with the text in a context the one where it fires most on it, first those that do. It goes block by
// block, so that the page stays usable meanwhile.
async function contextsByText(forest, text, isCurrent, report) {
  let best = [], n = 0, nFiring = 0;
  for (let start = 0; start < forest.n; start += forest.perBlock) {
    const block = await decodeBlock(`features-${start / forest.perBlock}`);
    if (!isCurrent()) return { best: [], n, nFiring };
    for (let f = start; f < Math.min(forest.n, start + forest.perBlock); f++) {
      const view = forest.view(block, f, start);
      let own = null;
      for (const context of [...view.top, ...view.sampled]) {
        // Anew for each feature, as each keeps a window of its own of the same context.
        const hits = tokensOf(Array.from(context.tokens, (token) => (forest.isSeparator[token] ? PARTING : forest.tokens[token])), text);
        const on = Math.max(-1, ...Array.from(hits, (i) => context.shades[i]));
        if (on > (own?.on ?? -1)) own = { f, on, hits, context };
      }
      if (!own) continue;
      n++;
      nFiring += own.on > 0;
      // A copy, so that the block need not stay in memory.
      best.push({ ...own, context: { ...own.context, tokens: own.context.tokens.slice(), shades: own.context.shades.slice(), parentShades: own.context.parentShades.slice() } });
    }
    best = best.sort((a, b) => b.on - a.on || a.f - b.f).slice(0, MAX_CONTEXTS);
    report(Math.min(1, (start + forest.perBlock) / forest.n), n);
  }
  return { best, n, nFiring };
}

function searchView(forest, query, isCurrent) {
  const text = plainQuery(query) || query; // some tokens are nothing but space
  const parts = [element("h1", { tabindex: "-1" }, "Search: ", element("bdi", {}, clipped(query)))];
  if (!text) return { title: "Search", parts: [...parts, element("p", {}, "Type a token, a label or a piece of text.")] };
  const features = featuresByText(forest, text);
  parts.push(section(`Features whose label or strongest tokens match (${features.length.toLocaleString("en")})`,
    ...(features.length ? longList("plain", features, (f) => element("li", {}, featureLink(forest, f), badges(forest, f), " ", element("span", { class: "muted" }, `fires on ${percent(forest.frequency[f])} of tokens`, foundOn(forest, f, text)), placeNode(forest, f))) : [element("p", { class: "muted" }, "None.")])));
  const status = element("p", { role: "status", class: "muted" }, "Searching …");
  const list = element("ul", { class: "found" });
  parts.push(section("Contexts", status, list));
  const written = (count) => count.toLocaleString("en");
  const finished = contextsByText(forest, text, isCurrent, (done, found) => { status.textContent = `Searched ${percent(done)} of the features: ${written(found)} found`; }).then(({ best, n, nFiring }) => {
    status.textContent = !n ? "0 found." : `${written(n)} ${n === 1 ? "feature has" : "features have"} a context with it; ${written(nFiring)} of them ${nFiring === 1 ? "fires" : "fire"} on it, outlined. ${best.length < n ? `Shown: ${best.length} of ${written(n)}, the` : "The"} strongest on it first.`;
    list.append(...best.map(({ f, hits, context }) => element("li", {}, element("p", {}, featureLink(forest, f), badges(forest, f), placeNode(forest, f)), element("ol", { class: "contexts" }, contextNode(forest, f, context, hits)))));
  });
  return { title: `Search: ${clipped(query, 40)}`, parts, finished };
}
