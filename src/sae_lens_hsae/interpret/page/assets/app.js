// Which view is shown: the part of the address after #.

const main = document.getElementById("main");
let follow = (path) => { location.hash = path; }; // until there is a list whose filters a link could keep
let pathOfQuery = (query) => `#/search/${encodeQuery(query)}`;
const KEYS = { u: "a[rel=up]", j: "a[rel=next]", k: "a[rel=prev]", c: "a.action" }; // the links they follow
const SETTLED = 150; // ms without scrolling, after which the place is kept

async function start() {
  const [block, vocabulary] = await Promise.all([decodeBlock("forest"), decodeBlock("vocabulary")]);
  const forest = new Forest(block, vocabulary.tokens);
  let current = 0, colour = "", scrolling = 0, shownLink = "";
  const linkTo = (path) => writeLink(path, { ...tree.state(), colour });
  // How far down one was, for the way back; as long as the address is still that of the view.
  const keepPlace = () => {
    if (location.hash === shownLink && history.state?.scroll !== main.scrollTop) history.replaceState({ ...history.state, scroll: main.scrollTop }, "");
  };
  main.addEventListener("scroll", () => {
    clearTimeout(scrolling);
    scrolling = setTimeout(keepPlace, SETTLED);
  });
  follow = (path) => {
    keepPlace();
    menu(false); // what is chosen may be shown already
    location.hash = linkTo(path);
  };
  const open = (feature) => follow(`#/f/${forest.id(feature)}`);
  pathOfQuery = (query) => (forest.withId(plainQuery(query)) < 0 ? `#/search/${encodeQuery(query)}` : `#/f/${plainQuery(query)}`);
  // Links of the page's own keep what is set.
  for (const kind of ["pointerdown", "focusin", "click"]) document.addEventListener(kind, (event) => {
    const link = event.target.closest?.('a[href^="#/"]');
    if (!link) return;
    link.setAttribute("href", linkTo(readLink(link.getAttribute("href")).path));
    keepPlace();
    if (kind === "click") menu(false);
  });
  // The link that stands in the address bar says what is shown; filtering makes no new entry to go back to.
  const note = (path = readLink(location.hash).path) => {
    const link = linkTo(path);
    if (link !== location.hash) history.replaceState(history.state, "", link);
    shownLink = link;
  };
  const recolour = (key) => {
    colour = key;
    note();
  };
  const tree = new Tree(forest, open, () => note(), () => guarded());

  const show = async () => {
    const mine = ++current;
    const isCurrent = () => mine === current;
    const asked = location.hash, place = history.state?.scroll ?? 0, box = document.getElementById("query");
    if (mine > 1 && asked !== main.dataset.view) box.value = ""; // the word of a search that was left
    const { path, state } = readLink(asked);
    if (writeLink("", state) !== linkTo("")) {
      colour = colouringsOf(forest).some(([key]) => key === state.colour) ? state.colour : "";
      tree.restore(state);
    }
    note();
    const [, view, first = "", ...rest] = path.split("/");
    let feature = -1, shown;
    if (view === "f" || view === "compare") {
      feature = forest.withId(`${first}/${rest[0]}`);
      if (feature < 0) shown = { title: "No such feature", parts: [element("h1", { tabindex: "-1" }, "No such feature"), element("p", { class: "notice" }, `${clipped(`${first}/${rest[0] ?? ""}`)} is not in this forest. Its levels have ${forest.levelWidths.join(", ")} features; a link names level and number, both from 0.`)] };
      else shown = await (view === "f" ? featureView(forest, feature, open) : compareView(forest, feature));
    } else if (view === "text") shown = await textView(forest, first, ...rest);
    else if (view === "search") {
      let query = [first, ...rest].join("/");
      try { query = decodeURIComponent(query); } catch { /* a link with a stray %: search for it as it stands */ }
      box.value = query;
      shown = searchView(forest, query, isCurrent);
    } else if (view === "map") shown = mapView(forest, open, follow, [], forest.withId(`${first}/${rest[0]}`), colour, recolour);
    else if (view === "part") shown = mapView(forest, open, follow, [first, rest[0] ?? ""], -1, colour, recolour);
    else shown = firstView(forest);
    if (!isCurrent()) return;
    main.replaceChildren(...shown.parts);
    if (shown.path) note(shown.path);
    if (mine > 1 && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName) && document.activeElement.id !== "tree") main.querySelector("h1")?.focus({ preventScroll: true });
    main.scrollTop = place;
    window.scrollTo(0, 0);
    document.title = shown.title ? `${shown.title} – ${forest.title}` : forest.title;
    menu(false);
    tree.select(feature);
    main.dataset.view = asked;
    const reached = main.scrollTop;
    await shown.finished;
    if (!isCurrent()) return;
    if (main.scrollTop === reached) main.scrollTop = place; // there may be more now
    main.dataset.finished = asked;
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
  for (const canvas of document.querySelectorAll("canvas")) canvas.dispatchEvent(new Event("theme"));
}

theme(remembered());
document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme(remembered(dark === "dark" ? "light" : "dark"));
});
for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", () => theme());
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  follow(pathOfQuery(document.getElementById("query").value));
});
document.getElementById("menu").addEventListener("click", () => menu(!document.getElementById("side").classList.contains("open")));
const SCROLLING = new Set(["PageDown", "PageUp", " ", "ArrowDown", "ArrowUp", "Home", "End"]);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") menu(false);
  // What scrolls is not the page but its main part.
  if (document.activeElement === document.body && SCROLLING.has(event.key)) main.focus({ preventScroll: true });
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "")) return;
  if (KEYS[event.key]) main.querySelector(KEYS[event.key])?.click();
  if (event.key !== "/") return;
  event.preventDefault();
  document.getElementById("query").focus();
});
start().catch((error) => main.replaceChildren(element("p", { class: "notice" }, `This page cannot be read: ${error.message}`)));
