// Which view is shown: the part of the address after #.

const main = document.getElementById("main");

function overviewView(forest, open) {
  const unassigned = forest.levelWidths.map((_, level) => (level ? forest.unassigned(level) : []));
  const nUnassigned = unassigned.flat().length;
  const tops = [...Array.from({ length: forest.levelWidths[0] }, (_, i) => i).sort((a, b) => forest.frequency[b] - forest.frequency[a]), ...unassigned.flat()];
  const label = `Overview of ${forest.n} features in ${forest.levelWidths.length} levels. The list of features shows the same.`;
  const choice = element("select", {}, COLOURINGS.map(([name], i) => element("option", { value: i }, name)));
  const holder = element("div");
  const draw = () => holder.replaceChildren(icicle(forest, tops, { open, colouring: Number(choice.value), label }));
  choice.addEventListener("change", draw);
  draw();
  const rows = forest.levelWidths.map((width, level) => {
    const own = forest.frequency.subarray(forest.offsets[level], forest.offsets[level + 1]);
    const silent = own.reduce((sum, each) => sum + (each === 0), 0);
    return element("tr", {}, [level, width, unassigned[level].length, silent, own.reduce((sum, each) => sum + each, 0).toFixed(1)].map((value) => element("td", { class: "value" }, value.toLocaleString("en"))));
  });
  return {
    title: "",
    parts: [
      element("h1", { tabindex: "-1" }, forest.title),
      element("p", {}, `${forest.n.toLocaleString("en")} features in ${forest.levelWidths.length} levels, read on ${forest.nTokens.toLocaleString("en")} tokens. Every feature has at most one parent, one level up; ${nUnassigned.toLocaleString("en")} are unassigned. Open a feature in the list, in the picture or by search.`),
      forest.n ? section("Overview", element("p", { class: "tools" }, element("label", {}, "Coloured by ", choice), element("span", { class: "ramp", "aria-hidden": "true" }), element("span", { class: "muted" }, "low to high; frequency on a logarithmic scale. Rows are levels, coarse to fine. Trees from the most to the least frequent root, then the unassigned features.")), holder) : element("p", { class: "notice" }, "The forest is empty."),
      section("Levels", element("table", {}, element("thead", {}, element("tr", {}, ["Level", "Features", "Unassigned", "Never fired", "Active per token"].map((name) => element("th", { scope: "col", class: "value" }, name)))), element("tbody", {}, rows))),
      section("Keys", element("p", {}, element("kbd", {}, "/"), " search; in the list ", element("kbd", {}, "↑"), " ", element("kbd", {}, "↓"), " move, ", element("kbd", {}, "→"), " ", element("kbd", {}, "←"), " open and close, ", element("kbd", {}, "Enter"), " shows the feature.")),
    ],
  };
}

async function start() {
  const [block, vocabulary] = await Promise.all([decodeBlock("forest"), decodeBlock("vocabulary")]);
  const forest = new Forest(block, vocabulary.tokens);
  const open = (feature) => { location.hash = `#/f/${forest.id(feature)}`; };
  const tree = new Tree(forest, open);
  let current = 0;

  const show = async () => {
    const mine = ++current;
    const isCurrent = () => mine === current;
    const [, view, first = "", ...rest] = location.hash.split("/");
    let feature = -1, shown;
    if (view === "f" || view === "compare") {
      feature = /^\d+$/.test(first) && /^\d+$/.test(rest[0] ?? "") ? forest.flat(Number(first), Number(rest[0])) : -1;
      if (feature < 0) shown = { title: "No such feature", parts: [element("h1", { tabindex: "-1" }, "No such feature"), element("p", { class: "notice" }, `${clipped(`${first}/${rest[0] ?? ""}`)} is not in this forest. Its levels have ${forest.levelWidths.join(", ")} features; a link names level and number, both from 0.`)] };
      else shown = await (view === "f" ? featureView(forest, feature, open) : compareView(forest, feature));
    } else if (view === "search") {
      let query = [first, ...rest].join("/");
      try { query = decodeURIComponent(query); } catch { /* a link with a stray %: search for it as it stands */ }
      document.getElementById("query").value = query;
      shown = searchView(forest, query, isCurrent);
    } else shown = overviewView(forest, open);
    if (!isCurrent()) return;
    main.replaceChildren(...shown.parts);
    main.scrollTop = 0;
    window.scrollTo(0, 0);
    document.title = shown.title ? `${shown.title} – ${forest.title}` : forest.title;
    menu(false);
    tree.select(feature);
    main.dataset.view = location.hash;
    await shown.finished;
    if (isCurrent()) main.dataset.finished = location.hash;
  };
  const guarded = () => show().catch((error) => main.replaceChildren(element("h1", {}, "This view cannot be shown"), element("p", { class: "notice" }, String(error.message))));
  window.addEventListener("hashchange", (event) => {
    if (location.hash === "#main") { // the skip link
      history.replaceState(null, "", new URL(event.oldURL).hash || "#/");
      main.focus();
      return;
    }
    guarded();
  });
  await guarded();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

function menu(open) {
  document.getElementById("side").classList.toggle("open", open);
  document.getElementById("menu").setAttribute("aria-expanded", String(open));
}

function remembered(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return theme ?? localStorage.getItem("theme");
  } catch { return theme; } // some browsers keep nothing for files
}

function theme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  document.dispatchEvent(new Event("theme"));
}

theme(remembered());
document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme(remembered(dark === "dark" ? "light" : "dark"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
document.getElementById("menu").addEventListener("click", () => menu(!document.getElementById("side").classList.contains("open")));
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = `#/search/${encodeQuery(document.getElementById("query").value)}`;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") menu(false);
  if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "")) return;
  event.preventDefault();
  document.getElementById("query").focus();
});
start().catch((error) => main.replaceChildren(element("p", { class: "notice" }, `This page cannot be read: ${error.message}`)));
