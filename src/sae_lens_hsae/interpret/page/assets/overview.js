// The first view: the forest in one picture, and its levels.

// The whole forest in one picture, or the part of it from one leaf to another.
function overviewPicture(forest, open, part, colour, recolour) {
  const unassigned = forest.levelWidths.flatMap((_, level) => (level ? forest.unassigned(level) : []));
  const roots = Array.from({ length: forest.levelWidths[0] }, (_, i) => i).sort((a, b) => forest.frequency[b] - forest.frequency[a]);
  const places = layout(forest, [...roots, ...unassigned]);
  const [first, last] = part.map((text) => (/^\d+$/.test(text) ? Number(text) : NaN));
  const [from, to] = first < last && last <= places.width ? [first, last] : [0, places.width];
  const label = `Overview of ${forest.n} features in ${forest.levelWidths.length} levels. The list of features shows the same.`;
  const choice = element("select", {}, COLOURINGS.map(([key, name]) => element("option", { value: key }, name)));
  choice.value = colour;
  if (choice.selectedIndex < 0) choice.value = "";
  const zoom = (a, b) => { location.hash = `#/part/${a}/${b}`; };
  const holder = element("div");
  const draw = () => holder.replaceChildren(icicle(forest, places, { open, colouring: COLOURINGS[choice.selectedIndex], label, part: [from, to], zoom }));
  choice.addEventListener("change", () => {
    draw();
    recolour(choice.value);
  });
  draw();
  const size = to - from, middle = (from + to) / 2;
  const link = (name, x, wide) => element("a", { href: wide >= places.width ? "#/" : `#/part/${around(x, wide, places.width).join("/")}` }, name);
  const filling = places.places.flatMap((band) => band.filter(([, x, w]) => size < places.width && x <= from && x + w >= to).map(([f]) => f));
  return section("Overview",
    element("p", { class: "tools" }, element("label", {}, "Coloured by ", choice), element("span", { class: "ramp", "aria-hidden": "true" }), element("span", { class: "muted" }, "low to high; frequency on a logarithmic scale. Rows are levels, coarse to fine. Trees from the most to the least frequent root, then the unassigned features.")),
    holder,
    element("p", { class: "tools zoom" },
      size < places.width ? element("a", { href: "#/" }, "Whole forest") : null,
      size < places.width ? link("Farther", middle, size * NEARER) : null,
      from > 0 ? link("Left", middle - size, size) : null,
      to < places.width ? link("Right", middle + size, size) : null,
      size > 2 ? link("Nearer", middle, size / NEARER) : null,
      filling.length ? element("span", {}, "Inside ", filling.map((f, i) => [i ? " › " : "", featureLink(forest, f)]).flat()) : null));
}

function overviewView(forest, open, part, colour, recolour) {
  const rows = forest.levelWidths.map((width, level) => {
    const own = forest.frequency.subarray(forest.offsets[level], forest.offsets[level + 1]);
    const silent = own.reduce((sum, each) => sum + (each === 0), 0);
    return element("tr", {}, [level, width, level ? forest.unassigned(level).length : 0, silent, own.reduce((sum, each) => sum + each, 0).toFixed(1)].map((value) => element("td", { class: "value" }, value.toLocaleString("en"))));
  });
  const nUnassigned = forest.levelWidths.reduce((sum, _, level) => sum + (level ? forest.unassigned(level).length : 0), 0);
  return {
    title: "",
    parts: [
      element("h1", { tabindex: "-1" }, forest.title),
      element("p", {}, `${forest.n.toLocaleString("en")} features in ${forest.levelWidths.length} levels, read on ${forest.nTokens.toLocaleString("en")} tokens. Every feature has at most one parent, one level up; ${nUnassigned.toLocaleString("en")} are unassigned. Open a feature in the list, in the picture or by search.`),
      forest.n ? overviewPicture(forest, open, part, colour, recolour) : element("p", { class: "notice" }, "The forest is empty."),
      forest.texts.length ? section("Texts", element("ul", { class: "plain" }, forest.texts.map((text, i) => element("li", {}, element("a", { href: `#/text/${i}` }, element("bdi", {}, clipped(text, 100))))))) : "",
      section("Levels", element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Levels" }, element("table", {}, element("thead", {}, element("tr", {}, ["Level", "Features", "Unassigned", "Never fired", "Active per token"].map((name) => element("th", { scope: "col", class: "value" }, name)))), element("tbody", {}, rows)))),
      section("Keys", element("p", {}, element("kbd", {}, "/"), " search; in the list ", element("kbd", {}, "↑"), " ", element("kbd", {}, "↓"), " move, ", element("kbd", {}, "→"), " ", element("kbd", {}, "←"), " open and close, ", element("kbd", {}, "Enter"), " shows the feature.")),
    ],
  };
}
