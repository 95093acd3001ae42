// The map: every tree of at least two features in one picture, first those of the first view, then the largest.

const LEAF_WIDTH = 52; // pixels that a leaf has at first, so that names fit

function mapOf(forest) {
  const worth = new Set(forest.worth);
  const others = forest.tops.filter((f) => forest.size[f] > 1 && !worth.has(f)).sort((a, b) => forest.concepts[b] - forest.concepts[a] || forest.size[b] - forest.size[a] || a - b);
  const tops = [...worth, ...others];
  return { tops, ...layout(forest, tops) };
}

// Where a feature of a tree stands on the map, in leaves.
function placeOnMap({ places }, forest, feature) {
  return places[forest.level(feature)].find(([f]) => f === feature).slice(1);
}

// The part of the map from one leaf to another, or what is around one feature.
function mapView(forest, open, follow, part, selected, colour, recolour) {
  const heading = element("h1", { tabindex: "-1" }, "Map of the forest");
  const map = mapOf(forest), { tops, width: all } = map;
  if (!tops.length) return { title: "Map", parts: [heading, element("p", { class: "notice" }, "No feature has a parent, so there is nothing to draw.")] };
  const [first, last] = part.map((text) => (/^\d+$/.test(text) ? Number(text) : NaN));
  const fits = Math.max(4, Math.floor(Math.min(main.clientWidth, 992) / LEAF_WIDTH));
  const drawn = selected >= 0 && forest.size[forest.path(selected)[0]] > 1;
  const [x, wide] = drawn ? placeOnMap(map, forest, selected) : [0, 0];
  const [from, to] = drawn ? around(x + wide / 2, Math.max(fits, wide), all) : first < last && last <= all ? [first, last] : [0, Math.min(fits, all)];
  const choice = element("select", {}, COLOURINGS.map(([key, name]) => element("option", { value: key }, name)));
  choice.value = colour;
  if (choice.selectedIndex < 0) choice.value = "";
  const zoom = (a, b) => follow(`#/part/${a}/${b}`);
  const holder = element("div");
  const label = `Map of ${tops.length} trees in ${forest.levelWidths.length} levels. The list of features shows the same.`;
  const draw = () => holder.replaceChildren(icicle(forest, map, { open, selected, colouring: COLOURINGS[choice.selectedIndex], label, part: [from, to], zoom }));
  choice.addEventListener("change", () => {
    draw();
    recolour(choice.value);
  });
  draw();
  const size = to - from, middle = (from + to) / 2;
  const link = (name, x, wide) => element("a", { href: `#/part/${around(x, wide, all).join("/")}` }, name);
  const filling = map.places.flatMap((band) => band.filter(([, x, w]) => size < all && x <= from && x + w >= to).map(([f]) => f));
  const alone = forest.tops.length - tops.length;
  return { title: "Map", parts: [
    heading,
    element("p", {}, `${tops.length.toLocaleString("en")} trees, in the order of the first view, then the largest; each row is a level, coarse to fine, and children stand below their parents. `, alone ? `${alone.toLocaleString("en")} features that stand alone are not drawn.` : ""),
    element("p", { class: "tools zoom" },
      from > 0 ? link("← Before", middle - size, size) : null,
      to < all ? link("Next →", middle + size, size) : null,
      size > 2 ? link("Zoom in", middle, size / NEARER) : null,
      size < all ? link("Zoom out", middle, size * NEARER) : null,
      size < all ? element("a", { href: `#/part/0/${all}` }, "Whole forest") : null,
      filling.length ? element("span", {}, "Inside ", filling.map((f, i) => [i ? " › " : "", featureLink(forest, f)]).flat()) : null),
    holder,
    element("p", { class: "tools" }, element("label", {}, "Coloured by ", choice), element("span", { class: "ramp", "aria-hidden": "true" }), element("span", { class: "muted" }, "low to high; frequency on a logarithmic scale")),
  ] };
}
