// The map: every tree of at least two features in one picture, in the order of the first view, then the largest.

const LEAF_WIDTH = 52; // pixels that a leaf has at first, so that names fit
const LEAST_HEIGHT = 60, MOST_HEIGHT = 180, BESIDE_BANDS = 330; // pixels: of a row, and of what else the view has

function treesOf(forest) {
  const isTree = (f) => forest.treeSize(f) > 1;
  const others = forest.tops.filter(isTree).sort((a, b) => forest.concepts[b] - forest.concepts[a] || forest.size[b] - forest.size[a] || a - b);
  return [...new Set([...chosenTrees(forest).filter(isTree), ...forest.worth, ...others])];
}

function mapOf(forest) {
  const tops = treesOf(forest);
  return { tops, ...layout(forest, tops) };
}

// Where a feature of a tree stands on the map, in leaves.
function placeOnMap({ places }, forest, feature) {
  return places[forest.level(feature)].find(([f]) => f === feature)?.slice(1);
}

// The part of the map from one leaf to another, or what is around one feature.
function mapView(forest, open, follow, part, selected, colour, recolour) {
  const heading = element("h1", { tabindex: "-1" }, "Map of the forest");
  const map = mapOf(forest), { tops, width: all } = map;
  if (!tops.length) return { title: "Map", parts: [heading, element("p", { class: "notice" }, "No feature has a parent, so there is nothing to draw.")] };
  const [first, last] = part.map((text) => (/^\d+$/.test(text) ? Number(text) : NaN));
  const fits = Math.max(4, Math.floor(Math.min(main.clientWidth, 992) / LEAF_WIDTH));
  const marked = selected < 0 ? selected : forest.shown(selected), place = marked < 0 ? null : placeOnMap(map, forest, marked);
  const asked = first < last, wide = Math.min(asked ? last - first : fits, all), start = asked ? Math.min(first, all - wide) : 0;
  const [from, to] = place ? around(place[0] + place[1] / 2, Math.max(fits, place[1]), all) : [start, start + wide];
  const bandHeight = Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, Math.floor((main.clientHeight - BESIDE_BANDS) / map.places.filter((band) => band.length).length)));
  const colourings = colouringsOf(forest);
  const choice = element("select", {}, colourings.map(([key, name]) => element("option", { value: key }, name)));
  choice.value = colour;
  if (choice.selectedIndex < 0) choice.value = "";
  const zoom = (a, b) => follow(`#/part/${a}/${b}`);
  const holder = element("div");
  const label = `Map of ${tops.length} trees in ${forest.levelWidths.length} levels. The list of features shows the same.`;
  const draw = () => holder.replaceChildren(icicle(forest, map, { open, selected: marked, colouring: colourings[choice.selectedIndex], bandHeight, label, part: [from, to], zoom }));
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
    leftOut(forest),
    element("p", {}, `${counted(tops.length, "tree")}, in the order of the first view, then the largest; each row is a level, coarse to fine, and children stand below their parents. `, alone ? `${counted(alone, "feature that stands alone is", "features that stand alone are")} not drawn.` : ""),
    element("p", { class: "tools zoom" },
      from > 0 ? link("← Before", middle - size, size) : null,
      to < all ? link("Next →", middle + size, size) : null,
      size > 2 ? link("Zoom in", middle, size / NEARER) : null,
      size < all ? link("Zoom out", middle, size * NEARER) : null,
      size < all ? element("a", { href: `#/part/0/${all}` }, "Whole forest") : null,
      filling.length ? element("span", {}, "Inside ", filling.map((f, i) => [i ? " › " : "", featureLink(forest, f)]).flat()) : null),
    holder,
    element("p", { class: "tools" }, element("label", {}, "Coloured by ", choice), element("span", { class: "ramp", "aria-hidden": "true" }), element("span", { class: "muted" }, "low to high, grey where there is none; frequency on a logarithmic scale")),
  ], path: !part.length ? null : asked ? `#/part/${from}/${to}` : "#/map" };
}
