// The first view: trees worth a look as cards, and the counts of the forest.

const FAMILIES = 8, ALONE = 6;

// A list of cards that grows by as many again. How many there are is kept for the way back.
function cardSection(title, explanation, features, count, make) {
  const list = element("ul", { class: "cards wide" });
  const status = element("div");
  let shown = 0;
  const grow = (by = count) => {
    const pending = [];
    const cards = Array.from(features.slice(shown, shown + by), (f) => make(f, pending));
    list.append(...cards);
    shown += cards.length;
    const more = features.length - shown;
    status.replaceChildren(more > 0 ? element("button", { type: "button", class: "more", onclick: () => {
      const from = shown;
      grow();
      list.children[from].querySelector("a").focus();
      history.replaceState({ ...history.state, shown: { ...history.state?.shown, [title]: shown } }, "");
    } }, `Show ${Math.min(count, more)} more of ${more.toLocaleString("en")}`) : "");
    return Promise.all(pending);
  };
  const finished = grow(history.state?.shown?.[title]);
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

function counted(count, one, more = `${one}s`) { return `${count.toLocaleString("en")} ${count === 1 ? one : more}`; }

// How much there is, how far its edges can be believed, and how much of them other trainings have, too.
function summary(forest) {
  const alone = forest.tops.filter((f) => forest.size[f] === 1).length, trees = forest.tops.length - alone;
  const said = [`${counted(forest.n, "feature")} in ${counted(forest.levelWidths.length, "level")}, read on ${counted(forest.nTokens, "token")}. `];
  if (!trees) return element("p", {}, said, "No feature has a parent.");
  said.push(`${(forest.n - alone).toLocaleString("en")} form ${counted(trees, "tree")}; `, alone ? `${counted(alone, "stands", "stand")} alone. ` : "none stands alone. ");
  const edges = Array.from(forest.parents.keys()).filter((f) => forest.parents[f] >= 0), others = forest.otherTrainings;
  const isCopy = (f) => forest.isCopy[f], isClear = (f) => forest.similarity(f) >= forest.weak;
  const copies = edges.filter(isCopy), clear = edges.filter((f) => !isCopy(f) && isClear(f)), weak = edges.filter((f) => !isCopy(f) && !isClear(f));
  const are = (of) => (of.length === 1 ? "is " : "are ");
  const kinds = [
    [copies, "copies", [copies.length === 1 ? "leads to a " : "lead to ", explained(copies.length === 1 ? "copy" : "copies", "A copy's decoder direction is nearly its parent's: the same thing once more, or a part of it; its badge says on how many of the parent's tokens it fires.")]],
    [clear, "clear enough", [are(clear), "clear enough"]],
    [weak, "weak", [clear.length && are(clear) === are(weak) ? "" : are(weak), explained("weak", `The similarity of a weak edge, P(parent | child) − 2 P(parent), is below ${forest.weak}; from there on it is clear enough.`)]],
  ].filter(([of]) => of.length);
  const whose = trees === 1 ? "its" : "their";
  if (kinds.length === 1) said.push(`${whose === "its" ? "Its" : "Their"} ${counted(edges.length, "edge")} `, ...kinds[0][2], ".");
  else said.push(`Of ${whose} ${counted(edges.length, "edge")} `, ...kinds.flatMap(([of, , verb], i) => [i ? (i === kinds.length - 1 ? " and " : ", ") : "", `${of.length.toLocaleString("en")} `, ...verb]), ".");
  const shares = (least) => kinds.map(([of, name]) => `${percent(of.filter((f) => forest.foundAgain[f] >= least).length / of.length)} of the ${name}`).join(", ");
  if (others.length) said.push(" ", explained("Found again", "Another training has the edge, too: both its ends have partners there, with much the same decoder directions, that are parent and child."),
    others.length === 1 ? ` in ${others[0]} (✓): ${shares(1)}.` : ` in at least one of ${others.length} other trainings (✓): ${shares(1)}. In all of them: ${shares(others.length)}.`);
  return element("p", { class: "summary" }, said);
}

// What the choice of edges leaves out, with the way back.
function leftOut(forest) {
  if (forest.least === -Infinity) return "";
  const edges = Array.from(forest.allParents.keys()).filter((f) => forest.allParents[f] >= 0 && !forest.isCopy[f]);
  const choice = document.getElementById("edges"), n = edges.filter((f) => forest.parents[f] < 0).length;
  return element("p", { class: "notice" }, `Edges below similarity ${forest.least} are left out: ${n.toLocaleString("en")} of ${edges.length.toLocaleString("en")}, copies aside. `, element("button", { type: "button", onclick: () => {
    choice.value = "";
    choice.dispatchEvent(new Event("change"));
  } }, "Show all edges"));
}

function sectionLines(forest, lines) {
  return element("ul", { class: "plain" }, lines.map(([text, features]) => element("li", {}, element("bdi", {}, clipped(text, 400)), features.map((f) => [" · ", featureLink(forest, f)]).flat())));
}

function chosenTrees(forest) { return [...new Set(forest.start.map((f) => forest.path(f)[0]))]; }

function firstView(forest) {
  const parts = [element("h1", { tabindex: "-1" }, forest.title), leftOut(forest), forest.n ? summary(forest) : element("p", { class: "notice" }, "The forest is empty.")];
  const pending = [];
  const add = ({ part, finished }) => {
    parts.push(part);
    pending.push(finished);
  };
  const tree = (f, waiting) => treeCard(forest, f, waiting);
  const start = chosenTrees(forest);
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
    section("Keys", element("p", {}, element("kbd", {}, "/"), " search; in the list ", element("kbd", {}, "↑"), " ", element("kbd", {}, "↓"), " move, ", element("kbd", {}, "→"), " ", element("kbd", {}, "←"), " open and close, ", element("kbd", {}, "Enter"), " shows the feature. On a feature ", element("kbd", {}, "u"), " goes up to its parent, ", element("kbd", {}, "j"), " ", element("kbd", {}, "k"), " to its next and its previous sibling, on the top of a tree to the next and the previous tree, ", element("kbd", {}, "c"), " to its comparison and back.")));
  return { title: "", parts, finished: Promise.all(pending) };
}
