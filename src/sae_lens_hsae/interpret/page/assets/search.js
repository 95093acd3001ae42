// Search by token, label and context text.

const MAX_CONTEXTS = 40;

function encodeQuery(text) {
  // A lone surrogate has no URL form.
  return encodeURIComponent(text.slice(0, 200).replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd"));
}

function featuresByText(forest, text) {
  const hits = forest.tokensWith(text);
  const found = [];
  for (let f = 0; f < forest.n; f++) {
    let score = text.trim() && (forest.labels[f] ?? "").toLowerCase().includes(text) ? 20 : forest.id(f) === text ? 30 : 0;
    for (let i = 0; i < forest.nStrongest; i++) score = Math.max(score, hits[forest.strongest[f * forest.nStrongest + i]] * (forest.nStrongest - i));
    if (score) found.push([score, f]);
  }
  return found.sort((a, b) => b[0] - a[0] || a[1] - b[1]).map(([, f]) => f);
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

// Adds contexts to a list as it finds them, block by block, so that the page stays usable meanwhile.
async function contextsByText(forest, text, isCurrent, report) {
  const seen = new Set();
  let found = 0;
  for (let start = 0; start < forest.n && found < MAX_CONTEXTS; start += forest.perBlock) {
    const block = await decodeBlock(`features-${start / forest.perBlock}`);
    if (!isCurrent()) return;
    for (let f = start; f < Math.min(forest.n, start + forest.perBlock) && found < MAX_CONTEXTS; f++) {
      const view = forest.view(block, f, start);
      for (const context of [...view.top, ...view.sampled]) {
        if (seen.has(context.number)) continue;
        const texts = Array.from(context.tokens, (token) => (forest.isSeparator[token] ? PARTING : forest.tokens[token]));
        // As it is read, or as its tokens are shown, since one may search for a token of bytes.
        if (![joinedText(texts), texts.join("")].some((joined) => joined.toLowerCase().includes(text))) continue;
        seen.add(context.number);
        found += 1;
        report(f, context);
        if (found >= MAX_CONTEXTS) break;
      }
    }
    report(null, null, Math.min(1, (start + forest.perBlock) / forest.n), found);
  }
  report(null, null, 1, found);
}

function searchView(forest, query, isCurrent) {
  const text = query.trim().toLowerCase() || query; // some tokens are nothing but space
  const parts = [element("h1", { tabindex: "-1" }, "Search: ", element("bdi", {}, clipped(query)))];
  if (!text) return { title: "Search", parts: [...parts, element("p", {}, "Type a token, a label or a piece of text.")] };
  const features = featuresByText(forest, text);
  parts.push(section(`Features whose label or strongest tokens match (${features.length.toLocaleString("en")})`,
    ...(features.length ? longList("plain", features, (f) => element("li", {}, featureLink(forest, f), " ", element("span", { class: "muted" }, `fires on ${percent(forest.frequency[f])} of tokens`), placeNode(forest, f))) : [element("p", { class: "muted" }, "None.")])));
  const status = element("p", { role: "status", class: "muted" }, "Searching …");
  const list = element("ul", { class: "found" });
  parts.push(section("Contexts", status, list));
  const finished = contextsByText(forest, text, isCurrent, (f, context, done, found) => {
    if (context) list.append(element("li", {}, element("p", {}, featureLink(forest, f), placeNode(forest, f)), element("ol", { class: "contexts" }, contextNode(forest, f, context))));
    else status.textContent = done < 1 && found < MAX_CONTEXTS ? `Searched ${percent(done)} of the features: ${found} found` : found >= MAX_CONTEXTS ? `The first ${found} are shown.` : `${found} found.`;
  });
  return { title: `Search: ${clipped(query, 40)}`, parts, finished };
}
