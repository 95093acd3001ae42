// One feature.

const MANY = 24; // cards and chips shown before "show all"

const MEANING = {
  frequency: "Share of all tokens that the feature fires on.",
  mean: "Mean activation over the tokens it fires on.",
  maximum: "Highest activation seen.",
  quantiles: "Half of the tokens it fires on stay below the median; one in ten, or one in a hundred, goes beyond the others.",
  detection: "Do the words of its label say where it fires? They are picked from one half of the text and tried on contexts of the other: the mean of the share of words it fires on that are among them, and of the share of silent words that are not. 1 is perfect, 0.5 is chance. A meaning that is not in the tokens scores low.",
  parentGivenChild: "P(parent | child): of the tokens this feature fires on, the share on which its parent fires too. 100 % means it lies within its parent.",
  childGivenParent: "P(child | parent): of the tokens the parent fires on, the share on which this feature fires too. Near 100 % with the above near 100 % means that the two are one and the same.",
  similarity: "P(parent | child) − 2 P(parent), by which parents are chosen by default. The higher, the likelier the two are about one thing.",
  parentCosine: "Cosine between the decoder directions of this feature and its parent.",
  agreement: "Of the tokens on which the feature or any of its children fires, the share on which both do.",
  anyChild: "Of the tokens this feature fires on, the share on which at least one of its children fires too. The rest no child accounts for.",
  size: "Features in the tree below it, itself included.",
};

function featureLink(forest, feature, view = "f") {
  return element("a", { href: `#/${view}/${forest.id(feature)}` }, element("span", { class: "id" }, forest.id(feature)), " ", element("bdi", {}, forest.name(feature)));
}

function byShare(forest) {
  return (a, b) => (forest.childGivenParent[b] || 0) - (forest.childGivenParent[a] || 0) || a - b;
}

// The children of its parent, itself among them.
function familyOf(forest, feature) {
  return forest.parents[feature] < 0 ? [] : forest.below(forest.above(feature)).sort(byShare(forest));
}

// What the keys j and k step through: the children of its parent; from the top of a tree the tops of all, as on the map.
function neighbours(forest, feature) {
  return forest.parents[feature] >= 0 ? familyOf(forest, feature) : forest.size[feature] > 1 ? treesOf(forest) : [];
}

function related(relation, link, title) {
  link.rel = relation; // keys follow it
  link.title = title;
  return link;
}

function pathNode(forest, feature) {
  const path = forest.trail(feature), family = neighbours(forest, feature), at = family.indexOf(feature);
  const kind = forest.parents[feature] >= 0 ? "sibling" : "tree";
  const beside = [];
  if (at > 0) beside.push(["‹ ", related("prev", featureLink(forest, family[at - 1]), `Previous ${kind} (k)`)]);
  if (at >= 0 && at < family.length - 1) beside.push([related("next", featureLink(forest, family[at + 1]), `Next ${kind} (j)`), " ›"]);
  if (forest.size[path[0]] > 1) beside.push(element("a", { href: `#/map/${forest.id(feature)}` }, "on the map"));
  const start = forest.isUnassigned(path[0]) ? [element("li", { class: "muted" }, "unassigned")] : [];
  return [element("nav", { "aria-label": "Path from the root" }, element("ol", { class: "path" }, start, path.map((each) =>
    element("li", {}, each === feature ? element("span", { class: "here", "aria-current": "page" }, element("span", { class: "id" }, forest.id(each)), " ", element("bdi", {}, forest.name(each))) : each === path.at(-2) ? related("up", featureLink(forest, each), "Parent (u)") : featureLink(forest, each))))),
    beside.length ? element("nav", { "aria-label": `Beside this ${kind === "tree" ? "tree" : "feature"}, and map` }, element("ul", { class: "beside" }, beside.map((each) => element("li", {}, each)))) : ""];
}

function metricsNode(forest, feature, data) {
  const list = element("dl", { class: "metrics" });
  const add = (term, meaning, value) => list.append(element("div", {}, element("dt", {}, explained(term, meaning)), element("dd", {}, value)));
  add("Fires on", MEANING.frequency, `${percent(forest.frequency[feature])} of tokens`);
  if (forest.frequency[feature] > 0) {
    add("Mean", MEANING.mean, significant(forest.meanActivation[feature]));
    add("Quantiles", MEANING.quantiles, forest.quantiles.map((at, i) => `${at === 0.5 ? "median" : `${Math.round(100 * at)} %:`} ${significant(data.quantileValues[i])}`).join(", "));
    add("Highest", MEANING.maximum, significant(forest.maximum[feature]));
  }
  if (Number.isFinite(forest.detection[feature])) add("Detection by tokens", MEANING.detection, `${number(forest.detection[feature])} on ${forest.nHeldOutFiring[feature]} firing and ${forest.nHeldOutSilent[feature]} silent words`);
  else if (forest.frequency[feature] > 0) add("Detection by tokens", MEANING.detection, `none: ${forest.noDetection[forest.detectionReason[feature]]}`);
  if (forest.parents[feature] >= 0) {
    add("Its parent fires too", MEANING.parentGivenChild, percent(forest.parentGivenChild[feature]));
    add("Share of its parent", MEANING.childGivenParent, percent(forest.childGivenParent[feature]));
    add("Similarity", MEANING.similarity, number(forest.similarity(feature)));
    add("Cosine with parent", MEANING.parentCosine, number(forest.parentCosine[feature]));
  }
  if (forest.children(feature).length) {
    add("Agreement with children", MEANING.agreement, percent(forest.agreement[feature]));
    add("A child fires too", MEANING.anyChild, percent(forest.anyChildGivenParent[feature]));
    add("Size of its tree", MEANING.size, `${forest.treeSize(feature).toLocaleString("en")} features${forest.hideCopies ? ", copies left out" : ""}`);
  }
  return list;
}

function histogramNode(forest, data) {
  const counts = Array.from(data.histogram);
  const first = counts.findIndex((count) => count > 0);
  if (first < 0) return element("p", { class: "muted" }, "It never fired on this text.");
  const last = counts.findLastIndex((count) => count > 0);
  const from = Math.max(0, first - 1), to = Math.min(counts.length - 1, last + 1);
  const shown = counts.slice(from, to + 1), most = Math.max(...shown), total = counts.reduce((a, b) => a + b, 0);
  const width = 480, height = 110, bar = width / shown.length;
  const picture = drawing("svg", { viewBox: `0 0 ${width} ${height + 20}`, class: "histogram", role: "img", "aria-label": `Histogram of ${total} activations from ${significant(forest.binEdges[first])} to ${significant(forest.binEdges[last + 1])}, logarithmic` });
  shown.forEach((count, i) => {
    const tall = count ? Math.max(1, (count / most) * height) : 0;
    const rect = drawing("rect", { x: i * bar + 0.5, y: height - tall, width: Math.max(bar - 1, 0.5), height: tall });
    rect.append(drawing("title"));
    rect.lastChild.textContent = `${significant(forest.binEdges[from + i])} to ${significant(forest.binEdges[from + i + 1])}: ${count} tokens`;
    picture.append(rect);
  });
  const step = Math.max(1, Math.ceil(shown.length / 6));
  for (let i = 0; i <= shown.length; i += step) {
    const text = drawing("text", { x: Math.min(Math.max(i * bar, 14), width - 14), y: height + 15, "text-anchor": "middle" });
    text.textContent = significant(forest.binEdges[from + i]);
    picture.append(text);
  }
  return picture;
}

// A list whose rest is shown on demand.
function longList(kind, items, make) {
  const list = element("ul", { class: kind }, items.slice(0, MANY).map(make));
  if (items.length <= MANY) return [list];
  const more = element("button", { type: "button", class: "more" }, `Show all ${items.length}`);
  more.addEventListener("click", () => {
    list.append(...items.slice(MANY).map(make));
    more.remove();
    list.children[MANY].querySelector("a, summary")?.focus();
  });
  return [list, more];
}

// A token by itself: the space that begins a word is shown, since "␣d" and "d" are two tokens.
function chipText(text) {
  return clipped(text.replace(/^ /, "␣"), 40);
}

function tokenChips(tokens) {
  return element("p", { class: "chips" }, tokens.map((text) => element("a", { class: "chip", href: `#/search/${encodeQuery(text.trim() || text)}` }, element("bdi", {}, chipText(text)))));
}

function logitsNode(pairs) {
  return element("p", { class: "chips" }, pairs.map(([text, value]) => element("span", { class: "chip" }, element("bdi", {}, chipText(text)), ` ${value >= 0 ? "+" : ""}${number(value)}`)));
}

// What one wants to know first, as a sentence.
function leadNode(forest, feature) {
  const parent = forest.parents[feature], nChildren = forest.nChildren[feature];
  const count = firings(forest, feature), of = (share, whose) => [strong(Math.round(share * count).toLocaleString("en")), ` of ${whose} (${percent(share)})`];
  const words = ["Fires on ", strong(count.toLocaleString("en")), ` of ${forest.nTokens.toLocaleString("en")} tokens (${percent(forest.frequency[feature])}).`];
  if (parent >= 0) words.push(" On ", ...of(forest.parentGivenChild[feature], "them"), ` ${parentPhrase(forest, feature)} fires too; these are ${percent(forest.childGivenParent[feature])} of its parent's tokens.`);
  if (nChildren) words.push(nChildren === 1 ? " Its child" : ` At least one of its ${nChildren} children`, hiddenPhrase(forest, feature), " fires on ", ...of(forest.anyChildGivenParent[feature], "its tokens"), ".");
  return element("p", { class: "lead" }, words);
}

async function featureView(forest, feature, open) {
  const data = await forest.feature(feature);
  const pending = [];
  const parent = forest.parents[feature], root = forest.path(feature)[0];
  const siblings = familyOf(forest, feature).filter((each) => each !== feature);
  const tokens = forest.strongestTokens(feature);
  const never = forest.frequency[feature] === 0;
  const parts = [
    ...pathNode(forest, feature),
    element("h1", { tabindex: "-1" }, element("span", { class: "id" }, forest.id(feature)), " ", element("bdi", {}, forest.name(feature)), badges(forest, feature)),
    never ? element("p", { class: "notice" }, `This feature fired on none of the ${forest.nTokens.toLocaleString("en")} tokens read. There is nothing to show of what it means; its decoder direction still has neighbours.`) : leadNode(forest, feature),
    familyNode(forest, feature, data, pending),
  ];
  // Drawn without the rest of the map, and followed there.
  const zoom = (a, b) => {
    const [start] = placeOnMap(mapOf(forest), forest, root);
    follow(`#/part/${start + a}/${start + b}`);
  };
  if (forest.size[root] > 1) parts.push(section("Its tree", icicle(forest, layout(forest, [root]), { open, zoom, atOnce: true, selected: feature, bandHeight: 30, label: `Tree of ${forest.id(root)}: ${forest.size[root]} features. The list of features shows the same.` })));
  for (const { title, lines } of forest.sections) {
    const here = lines.filter(([, features]) => features.includes(feature));
    if (here.length) parts.push(section(title, sectionLines(forest, here)));
  }
  if (tokens.length) parts.push(section("Strongest tokens", element("p", { class: "muted" }, "Highest mean activation over all occurrences; ␣ is the space before a word. Follow one to search for it."), tokenChips(tokens)));
  if (data.promoted) parts.push(section("Promoted and suppressed tokens", element("p", { class: "muted" }, "Relative change of the logit, by the direction alone."), logitsNode(data.promoted), logitsNode(data.suppressed)));
  if (!never) parts.push(
    section("Strongest contexts", shadingLegend(forest, feature), contextList(forest, feature, data.top, "None was kept.")),
    section("Contexts across the range of activations", contextList(forest, feature, data.sampled, "None was kept.")),
  );
  if (parent >= 0) parts.push(section(`Where it and ${parentPhrase(forest, feature)} disagree`, data.parentAlone.length || data.childAlone.length ? element("p", { class: "legend" }, "Outlined: the token on which one fires and the other does not.") : "",
    element("h3", {}, "The parent fires, this feature does not"),
    contextList(forest, feature, data.parentAlone, "Never in this text.", ({ shades, parentShades }) => onlyIn(parentShades, shades)),
    element("h3", {}, "This feature fires, the parent does not"),
    contextList(forest, feature, data.childAlone, "Never in this text.", ({ shades, parentShades }) => onlyIn(shades, parentShades))));
  parts.push(section("Numbers", metricsNode(forest, feature, data)), section("Activations", histogramNode(forest, data)));
  if (siblings.length) parts.push(section(`Siblings (${siblings.length})`, ...longList("plain", siblings, (each) => element("li", {}, featureLink(forest, each), badges(forest, each)))));
  if (data.nearest.length) parts.push(section(`Nearest features of level ${forest.level(feature)}`, element("p", { class: "muted" }, "By cosine of the decoder directions."),
    element("ul", { class: "plain" }, data.nearest.map((other, i) => element("li", {}, element("span", { class: "cosine" }, number(data.nearestCosines[i])), " ", featureLink(forest, other))))));
  return { title: `${forest.id(feature)} ${forest.name(feature)}`, parts, finished: Promise.all(pending) };
}
