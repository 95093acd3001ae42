// One text, token by token: how much of the activation each level explains, and the active paths of the forest.

const MANY_PATHS = 8;

function wholePercent(share) {
  return Number.isFinite(share) ? `${Math.round(100 * share)} %`.replace("-", "−") : "–";
}

// What fires on each token: a map from feature to the number of its entry, and how many fire without their parent.
function firingByToken(forest, data) {
  return data.tokens.map((_, position) => {
    const entries = new Map();
    for (let i = data.starts[position]; i < data.starts[position + 1]; i++) entries.set(data.features[i], i);
    const assigned = [...entries.keys()].filter((f) => forest.parents[f] >= 0);
    return { entries, nAssigned: assigned.length, alone: new Set(assigned.filter((f) => !entries.has(forest.parents[f]))) };
  });
}

function textLine(forest, data, firing, index, chosen) {
  const nLevels = forest.levelWidths.length;
  const line = element("p", { class: "context", dir: "auto" });
  data.tokens.forEach((text, position) => {
    const share = data.levelShares[(position + 1) * nLevels - 1];
    const { nAssigned, alone } = firing[position];
    const outlying = data.outlying.includes(position);
    const node = element("a", { class: `${tokenClass(text)}${outlying ? " outlying" : ""}`, href: `#/text/${index}/${position}`, "aria-current": position === chosen ? "true" : undefined,
      title: outlying ? "left out" : `explained ${wholePercent(share)}, ${alone.size} of ${nAssigned} without their parent` }, clipped(text, MAX_SHOWN, data.tokens[position - 1], data.tokens[position + 1]));
    shade(node, "own", Math.max(0, share) * SHADES);
    shade(node, "above", nAssigned ? (alone.size / nAssigned) * SHADES : 0);
    line.append(node);
  });
  return line;
}

// The features that fire and stand above no other that does; first those whose paths have the largest shares together.
function endsOf(forest, data, { entries }) {
  const paths = new Map(Array.from(entries.keys(), (f) => [f, forest.path(f)]));
  const inner = new Set([...paths.values()].flatMap((path) => path.slice(0, -1)));
  const share = (f) => paths.get(f).reduce((sum, each) => sum + (entries.has(each) ? data.shares[entries.get(each)] : 0), 0);
  return [...entries.keys()].filter((f) => !inner.has(f)).map((f) => [share(f), f]).sort(([a, f], [b, g]) => b - a || f - g).map(([, f]) => f);
}

// The paths to some features that fire, drawn as one tree: what they have in common stands once.
function pathTree(forest, data, { entries, alone }, ends) {
  const line = (f) => {
    const entry = entries.get(f);
    if (entry === undefined) return element("li", { class: "silent" }, featureLink(forest, f), element("span", { class: "muted" }, " silent"));
    return element("li", {}, featureLink(forest, f), element("span", { class: "muted" }, ` activation ${significant(data.activations[entry])}, share ${wholePercent(data.shares[entry])}`),
      alone.has(f) ? element("strong", { class: "alone" }, " without its parent") : null);
  };
  const top = element("ul", { class: "paths" });
  const lists = new Map();
  for (const end of ends) {
    let list = top, above = null;
    for (const f of forest.path(end)) {
      if (!lists.has(f)) {
        if (above && !list) {
          list = element("ul", { class: "paths" });
          above.item.append(list);
          above.list = list;
        }
        const item = line(f);
        list.append(item);
        lists.set(f, { item, list: null });
      }
      above = lists.get(f);
      list = above.list;
    }
  }
  return top;
}

function levelTable(forest, data, { entries, alone }, position) {
  const nLevels = forest.levelWidths.length;
  const count = (features, level) => [...features].filter((f) => forest.level(f) === level).length;
  const rows = forest.levelWidths.map((_, level) => element("tr", {},
    [level, wholePercent(data.levelShares[position * nLevels + level]), count(entries.keys(), level), level ? count(alone, level) : "–"].map((value) => element("td", { class: "value" }, String(value)))));
  const heads = ["Level", "Explains", "Features that fire", "Without their parent"];
  return scrolling("Levels on this token",
    element("thead", {}, element("tr", {}, heads.map((name) => element("th", { scope: "col", class: "value" }, name)))), element("tbody", {}, rows));
}

const UNREAD = "Left out: a position that was not trained on.";
const LEFT_OUT = "Left out: far from all other tokens, such as an attention sink, or the first of a text. What fires there is about the place, not the word.";

async function textView(forest, indexText, positionText) {
  const index = /^\d+$/.test(indexText) ? Number(indexText) : -1;
  const none = (what) => ({ title: "No such text", parts: [element("h1", { tabindex: "-1" }, "No such text"), element("p", { class: "notice" }, what)] });
  if (!(index >= 0 && index < forest.texts.length)) return none(forest.texts.length ? `This page holds the texts 0 to ${forest.texts.length - 1}.` : "This page was made without texts: hsae explore --explain.");
  const data = await decodeBlock(`text-${index}`);
  const first = Math.max(0, data.tokens.findIndex((_, i) => !data.outlying.includes(i)));
  const position = positionText === undefined ? first : /^\d+$/.test(positionText) ? Number(positionText) : -1;
  if (!(position >= 0 && position < data.tokens.length)) return none(`Text ${index} has the tokens 0 to ${data.tokens.length - 1}.`);

  const firing = firingByToken(forest, data);
  const ends = endsOf(forest, data, firing[position]);
  const holder = element("div", {}, pathTree(forest, data, firing[position], ends.slice(0, MANY_PATHS)));
  const parts = [
    element("h1", { tabindex: "-1" }, `Text ${index}`),
    textLine(forest, data, firing, index, position),
    element("p", { class: "legend" }, "Shaded: the share of the activation that the finest level explains. The bar below a token is the share of its features that fire without their parent. Follow a token to see what fires on it.", data.outlying.length ? " Crossed out: left out." : ""),
    section(`Token ${position}: `, levelTable(forest, data, firing[position], position)),
    section(`Active paths (${ends.length})`, element("p", { class: "muted" }, "Coarse to fine, the strongest first. The shares of a level's features add up to what the level explains."), ends.length ? holder : element("p", { class: "notice" }, data.outlying.includes(position) ? LEFT_OUT : Number.isFinite(data.levelShares[position * forest.levelWidths.length]) ? "No feature fires on this token." : UNREAD)),
  ];
  parts[3].querySelector("h2").append(element("bdi", {}, chipText(data.tokens[position])));
  if (ends.length > MANY_PATHS) {
    const more = element("button", { type: "button", class: "more" }, `Show all ${ends.length}`);
    more.addEventListener("click", () => {
      holder.replaceChildren(pathTree(forest, data, firing[position], ends));
      more.remove();
      holder.querySelector(`a[href="#/f/${forest.id(ends[MANY_PATHS])}"]`).focus();
    });
    parts.push(more);
  }
  return { title: `Text ${index}: ${clipped(forest.texts[index], 40)}`, parts };
}
