// Features beside each other: names, words, and a few tokens of where each one fires.

const SNIPPET_LENGTH = 40; // characters on either side of the peak
const MANY_CHILDREN = 8;

const FEW = 20; // firings, below which percentages say little

function firings(forest, feature) { return Math.round(forest.frequency[feature] * forest.nTokens); }

// A badge of the list and the cards; and one of a feature's page, which keyboard and touch can ask what it means.
function badge(kind, text, explanation) { return element("span", { class: `badge ${kind}`, title: explanation }, text); }
function badgeButton(kind, text, explanation) { return explained(text, explanation, `term badge ${kind}`); }

function copyBadge(forest, feature, make = badge) {
  if (!forest.isCopy[feature]) return null;
  const covered = forest.childGivenParent[feature];
  return make("copy", covered < 0.5 ? `copy ${percent(covered)}` : "copy", `Copy: cosine ${number(forest.parentCosine[feature])} with its parent's decoder direction (above 0.8). It fires on ${percent(covered)} of its parent's tokens. Near 100 %, it says the same thing once more; well below, it is a part of its parent, or something beside it.`);
}

// Its edge to its parent is in other trainings, too; in the list, where there is little room, only a mark.
function againBadge(forest, feature, text = "found again", make = badge) {
  const count = forest.foundAgain[feature], others = forest.otherTrainings;
  if (!count || forest.parents[feature] < 0) return null;
  return make("again", others.length === 1 ? text : `${text} ${count}/${others.length}`,
    `Found again: its edge to ${forest.id(forest.parents[feature])} is also in ${count === others.length ? others.join(", ") : `${count} of ${others.length} other trainings`}.`);
}

function weakBadge(forest, feature, make = badge) {
  if (forest.isCopy[feature] || forest.parents[feature] < 0) return null; // copies were not read
  const similarity = forest.similarity(feature);
  return similarity < forest.weak ? make("weak", "weak", `P(parent | child) − 2 P(parent) is ${number(similarity)} for its edge to ${forest.id(forest.parents[feature])}. Below ${forest.weak}, read the contexts of both before you believe it.`) : null;
}

function fewBadge(forest, feature) {
  const count = firings(forest, feature);
  return count > 0 && count < FEW ? badgeButton("few", "few", `Fires on only ${count} ${count === 1 ? "token" : "tokens"} of this text; read its percentages as such. More text: hsae explore … --n-tokens ${10 * forest.nTokens} --renew`) : null;
}

function edgeBadges(forest, feature) {
  return [copyBadge(forest, feature, badgeButton), againBadge(forest, feature, "found again", badgeButton), weakBadge(forest, feature, badgeButton)].filter(Boolean);
}

function badges(forest, feature) { return [fewBadge(forest, feature), ...edgeBadges(forest, feature)]; }

// The tokens around the peak of a context, as in a concordance: what comes before ends where the peak begins. No
// further than to a token that parts texts.
function snippetNode(forest, feature, context) {
  let peak = 0;
  context.shades.forEach((value, i) => { if (value > context.shades[peak]) peak = i; });
  const before = element("span", { class: "before" }), after = element("span", { class: `after${(forest.tokens[context.tokens[peak]] ?? "").startsWith(" ") ? " spaced" : ""}` });
  const tokens = [];
  for (let i = peak, left = SNIPPET_LENGTH; i >= 0 && left > 0 && inside(i); i--) left -= put(tokens, i, "unshift");
  before.append(element("span", {}, tokens.slice(0, -1)));
  const rest = tokens.slice(-1);
  for (let i = peak + 1, left = SNIPPET_LENGTH; i < context.tokens.length && left > 0 && inside(i); i++) left -= put(rest, i, "push");
  after.append(...rest);
  return element("span", { class: "snippet", dir: "auto" }, before, after);

  function inside(i) { return i === peak || !forest.isSeparator[context.tokens[i]]; }
  function put(list, i, how) {
    const [last, whole, next] = [i - 1, i, i + 1].map((at) => forest.tokens[context.tokens[at]] ?? "");
    const text = clipped(whole, 24, last, next);
    const node = element("span", { class: tokenClass(whole) }, i === peak ? text.trimStart() : text);
    shade(node, "own", context.shades[i]);
    if (context.tokens[i]) list[how](node);
    return text.length + 1;
  }
}

// Adds where a feature fires to a node, once its block is decoded.
function withSnippets(forest, feature, node, count = 1) {
  if (!(forest.frequency[feature] > 0)) return Promise.resolve();
  return forest.feature(feature).then((data) => node.append(...data.top.slice(0, count).map((context) => snippetNode(forest, feature, context))));
}

// The strongest tokens, each word once, and pieces of words only where there is nothing else.
function wordsNode(forest, feature, count = 6) {
  const tokens = forest.strongestTokens(feature), whole = tokens.filter((token) => token.startsWith(" "));
  const words = new Map((whole.length ? whole : tokens).map((token) => [token.trim().toLowerCase() || token, token.trim() || token]));
  return element("p", { class: "words" }, [...words.values()].slice(0, count).map((word, i) => [i ? " · " : "", element("bdi", {}, clipped(word, 24))]).flat());
}

// How much a feature narrows its parent, as `Dashboards.narrowing` has it.
function narrowing(forest, f) {
  return (forest.parentGivenChild[f] - forest.frequency[forest.above(f, false)]) * (1 - forest.childGivenParent[f]) || 0;
}

// A tree as a card: its names indented, each with a few tokens. Copies, and what never fired, are left out.
function treeCard(forest, top, pending, most = 9) {
  const order = (features) => features.filter((f) => forest.frequency[f] > 0).sort((a, b) => narrowing(forest, b) - narrowing(forest, a) || a - b);
  // Breadth first, so that a card cut short still shows every branch.
  const kept = new Set([top]);
  for (let generation = [top]; generation.length && kept.size < most;) {
    generation = generation.flatMap((f) => order(forest.below(f, true)));
    generation.slice(0, most - kept.size).forEach((f) => kept.add(f));
  }
  const line = (f) => {
    const row = element("div", { class: "leaf" }, element("a", { href: `#/f/${forest.id(f)}` }, element("bdi", {}, forest.name(f))), againBadge(forest, f), weakBadge(forest, f));
    pending.push(withSnippets(forest, f, row));
    const children = order(forest.below(f, true)).filter((child) => kept.has(child));
    return element("li", {}, row, children.length ? element("ul", {}, children.map(line)) : null);
  };
  const count = (f) => 1 + order(forest.below(f, true)).reduce((sum, child) => sum + count(child), 0);
  const concepts = count(top), all = forest.size[top], distinct = forest.concepts[top];
  const others = [all > distinct ? "copies" : "", distinct > concepts ? "silent ones" : ""].filter(Boolean).join(" and ");
  return element("li", { class: "card tree" }, element("ul", { class: "branches" }, line(top)),
    element("p", { class: "muted" }, `${forest.id(top)} · ${concepts} ${concepts === 1 ? "concept" : "concepts"}${others ? ` (${all} features with ${others})` : ""}`, concepts > kept.size ? [" · ", element("a", { href: `#/map/${forest.id(top)}` }, `see all ${all} on the map`)] : null));
}

// A feature that stands alone, with two contexts.
function aloneCard(forest, feature, pending) {
  const card = element("li", { class: "card" }, featureLink(forest, feature));
  pending.push(withSnippets(forest, feature, card, 3));
  return card;
}

function strong(text) { return element("strong", {}, text); }

// The parent that the numbers are about, by its name where it is a copy that is hidden.
function parentPhrase(forest, feature) {
  const parent = forest.parents[feature];
  return parent === forest.above(feature) ? "its parent" : `its parent ${forest.id(parent)} (a hidden copy)`;
}

// What is to be said beside the number of children that the numbers are about.
function hiddenPhrase(forest, feature) {
  const all = forest.nChildren[feature], weak = all - forest.children(feature).length;
  const copies = forest.hideCopies ? forest.children(feature).filter((child) => forest.isCopy[child]).length : 0;
  if (!weak && !copies) return "";
  if (weak) return all === 1 ? " (hidden)" : ` (${weak + copies} of them hidden)`;
  return all === 1 ? " (a hidden copy)" : ` (${copies} of them ${copies === 1 ? "a hidden copy" : "hidden copies"})`;
}

// Why no parent is shown.
function noParentNode(forest, feature) {
  const hidden = forest.allParents[feature], level = forest.level(feature);
  if (hidden >= 0) return element("p", { class: "muted" }, "Hidden: ", featureLink(forest, hidden), `, with a similarity of ${number(forest.similarity(feature))}.`);
  return element("p", { class: "muted" }, level ? `None: unassigned. No feature of level ${level - 1} is alike enough.` : "None: features of level 0 are roots.");
}

// Parent, feature and children in three columns.
function familyNode(forest, feature, data, pending) {
  const parent = forest.above(feature), children = forest.below(feature).sort(byShare(forest)), ofEdge = edgeBadges(forest, feature);
  const column = (title, ...content) => element("div", { class: "relative" }, element("h3", {}, title), ...content);
  const above = parent >= 0
    ? column("Parent", element("p", {}, featureLink(forest, parent), fewBadge(forest, parent), copyBadge(forest, parent, badgeButton)), parent === forest.parents[feature] ? null
      : element("p", { class: "muted" }, "through its hidden copy ", featureLink(forest, forest.parents[feature]), ", which the numbers and contexts below are about"),
    ofEdge.length ? element("p", { class: "muted" }, "The edge:", ofEdge) : null, wordsNode(forest, parent))
    : column("Parent", noParentNode(forest, feature));
  if (parent >= 0) pending.push(withSnippets(forest, parent, above, 3));
  const own = column("This feature", wordsNode(forest, feature), data.top.slice(0, 4).map((context) => snippetNode(forest, feature, context)));
  const list = element("ul", { class: "plain children" });
  const add = (child) => {
    const direct = forest.parents[child] === feature;
    const item = element("li", {}, element("p", {}, featureLink(forest, child), badges(forest, child)), wordsNode(forest, child),
      element("p", { class: "muted" }, !direct ? ["through the hidden copy ", featureLink(forest, forest.parents[child])] : !firings(forest, child) ? "never fires"
        : ["on ", strong(percent(forest.childGivenParent[child])), " of this feature's tokens; ", strong(percent(forest.parentGivenChild[child])), ` of its own lie within them · similarity ${number(forest.similarity(child))}`]));
    pending.push(withSnippets(forest, child, item));
    list.append(item);
  };
  children.slice(0, MANY_CHILDREN).forEach(add);
  const more = children.length > MANY_CHILDREN ? element("button", { type: "button", class: "more" }, `Show all ${children.length}`) : null;
  more?.addEventListener("click", () => {
    children.slice(MANY_CHILDREN).forEach(add);
    more.remove();
    list.children[MANY_CHILDREN].querySelector("a").focus();
  });
  const compare = forest.children(feature).length ? element("p", {}, element("a", { class: "action", href: `#/compare/${forest.id(feature)}` }, "Compare on the same contexts")) : null;
  const below = column(`Children (${children.length})`, children.length ? list : element("p", { class: "muted" }, "None."), more, compare);
  return element("div", { class: "family" }, above, own, below);
}
