// The first view: trees worth a look as cards, and the counts of the forest.

const FAMILIES = 8, ALONE = 6;

// A list of cards that grows by as many again.
function cardSection(title, explanation, features, count, make) {
  const list = element("ul", { class: "cards wide" });
  const status = element("div");
  let shown = 0;
  const grow = () => {
    const pending = [];
    const cards = Array.from(features.slice(shown, shown + count), (f) => make(f, pending));
    list.append(...cards);
    const next = cards[0]?.querySelector("a");
    if (shown) next?.focus();
    shown += cards.length;
    const more = features.length - shown;
    status.replaceChildren(more > 0 ? element("button", { type: "button", class: "more", onclick: grow }, `Show ${Math.min(count, more)} more of ${more.toLocaleString("en")}`) : "");
    return Promise.all(pending);
  };
  const finished = grow();
  return { part: section(title, element("p", { class: "muted" }, explanation), list, status), finished };
}

// The counts are those of `hsae evaluate` on the same text, without outlying tokens.
function levelRows(forest) {
  return forest.levelWidths.map((width, level) => {
    const sum = (array, of = Number) => array.subarray(forest.offsets[level], forest.offsets[level + 1]).reduce((all, each) => all + of(each), 0);
    const l0 = sum(forest.frequency), dead = sum(forest.frequency, (each) => each === 0);
    const unassigned = sum(forest.allParents, (each) => each < 0), copies = sum(forest.isCopy);
    const values = [level, width.toLocaleString("en"), l0.toFixed(2), dead.toLocaleString("en"),
      level ? `${unassigned.toLocaleString("en")} (${((100 * unassigned) / width).toFixed(1)} %)` : "–", level ? copies.toLocaleString("en") : "–"];
    return element("tr", {}, values.map((value) => element("td", { class: "value" }, String(value))));
  });
}

function summary(forest) {
  const n = (count) => count.toLocaleString("en");
  const alone = forest.tops.filter((f) => forest.size[f] === 1).length, trees = forest.tops.length - alone;
  const copies = forest.isCopy.reduce((sum, each) => sum + each, 0);
  const edges = ownEdges(forest), weak = edges.filter((f) => !(forest.similarity(f) >= forest.weak)).length;
  return element("p", {}, `${n(forest.n)} features in ${forest.levelWidths.length} levels, read on ${n(forest.nTokens)} tokens. `,
    trees ? `${n(forest.n - alone)} of them form ${n(trees)} trees; ${n(alone)} stand alone. ` : "No feature has a parent. ",
    copies ? `${n(copies)} children are copies of their parents. ` : "", weak ? `Of the other ${n(edges.length)} edges ${n(weak)} are weak. ` : "", repeated(forest), element("a", { href: "#/map" }, "See the trees on a map."));
}

// The children whose edges are shown and that are no copies.
function ownEdges(forest) { return Array.from(forest.parents.keys()).filter((f) => forest.parents[f] >= 0 && !forest.isCopy[f]); }

// How many edges that are no copies other trainings have, too.
function repeated(forest) {
  const others = forest.otherTrainings, edges = ownEdges(forest);
  if (!others.length || !edges.length) return "";
  const count = (least) => edges.filter((f) => forest.foundAgain[f] >= least).length.toLocaleString("en");
  const of = `Of the ${edges.length.toLocaleString("en")} edges that are no copies`, all = others.length;
  return all === 1 ? `${of} ${count(1)} are also in ${others[0]} (found again, ✓). ` : `${of} ${count(1)} are also in at least one of ${all} other trainings (found again, ✓), ${count(all)} in all of them. `;
}

function sectionLines(forest, lines) {
  return element("ul", { class: "plain" }, lines.map(([text, features]) => element("li", {}, element("bdi", {}, clipped(text, 400)), features.map((f) => [" · ", featureLink(forest, f)]).flat())));
}

function firstView(forest) {
  const parts = [element("h1", { tabindex: "-1" }, forest.title), forest.n ? summary(forest) : element("p", { class: "notice" }, "The forest is empty.")];
  const pending = [];
  const add = ({ part, finished }) => {
    parts.push(part);
    pending.push(finished);
  };
  const tree = (f, waiting) => treeCard(forest, f, waiting);
  const topOf = (f) => forest.path(f)[0];
  const start = [...new Set(forest.start.map(topOf))];
  if (start.length) add(cardSection("Start here", "Trees that were chosen for this page.", start, FAMILIES, tree));
  forest.sections.forEach(({ title, lines, graph }) => parts.push(section(title, graph ? circuitGraph(forest, graph) : sectionLines(forest, lines))));
  if (forest.texts.length) parts.push(section("Texts", element("ul", { class: "plain" }, forest.texts.map((text, i) => element("li", {}, element("a", { href: `#/text/${i}` }, element("bdi", {}, clipped(text, 100))))))));
  const families = forest.worth.filter((f) => !start.includes(f));
  if (families.length) add(cardSection(`Trees that branch (${families.length.toLocaleString("en")})`,
    `First those whose children are narrower than their parents${forest.otherTrainings.length ? ", whose edges are found again," : ""} and whose names hold. Shaded: where the feature fires.`, families, FAMILIES, tree));
  const alone = Array.from(forest.alone).filter((f) => !start.includes(f));
  if (alone.length) add(cardSection("Clear features that stand alone", "First those whose tokens say best where they fire.", alone, ALONE, (f, waiting) => aloneCard(forest, f, waiting)));
  parts.push(
    section("Levels", scrolling("Levels",
      element("thead", {}, element("tr", {}, ["Level", "Features", "L0", "Dead", "Unassigned", "Copies"].map((name) => element("th", { scope: "col", class: "value" }, name)))), element("tbody", {}, levelRows(forest)))),
    section("Keys", element("p", {}, element("kbd", {}, "/"), " search; in the list ", element("kbd", {}, "↑"), " ", element("kbd", {}, "↓"), " move, ", element("kbd", {}, "→"), " ", element("kbd", {}, "←"), " open and close, ", element("kbd", {}, "Enter"), " shows the feature. On a feature ", element("kbd", {}, "u"), " goes up to its parent, ", element("kbd", {}, "j"), " ", element("kbd", {}, "k"), " to its next and its previous sibling, ", element("kbd", {}, "c"), " to its comparison and back.")));
  return { title: "", parts, finished: Promise.all(pending) };
}
