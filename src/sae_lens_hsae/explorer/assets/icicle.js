// The overview: one band per level, every feature above its children, as wide as the leaves below it.

const BAND_HEIGHT = 42;
const COLOURINGS = [
  ["frequency", (forest, f) => (forest.frequency[f] > 0 ? Math.log(forest.frequency[f] / forest.minFrequency) / Math.log(forest.maxFrequency / forest.minFrequency) : NaN)],
  ["agreement with children", (forest, f) => forest.agreement[f]],
  ["P(parent | child)", (forest, f) => forest.parentGivenChild[f]],
  ["P(child | parent)", (forest, f) => forest.childGivenParent[f]],
];

// Features with their place: x and width in leaves.
function layout(forest, tops) {
  const leaves = new Map();
  const count = (f) => {
    let sum = 0;
    for (const child of forest.children(f)) sum += count(child);
    leaves.set(f, Math.max(1, sum));
    return Math.max(1, sum);
  };
  const places = forest.levelWidths.map(() => []);
  const put = (f, x) => {
    places[forest.level(f)].push([f, x, leaves.get(f)]);
    for (const child of forest.children(f)) {
      put(child, x);
      x += leaves.get(child);
    }
  };
  let width = 0;
  for (const f of tops) {
    count(f);
    put(f, width);
    width += leaves.get(f);
  }
  places.forEach((band) => band.sort((a, b) => a[1] - b[1]));
  return { places, width };
}

function icicle(forest, tops, { open, selected = -1, colouring = 0, bandHeight = BAND_HEIGHT, label }) {
  const { places, width } = layout(forest, tops);
  const first = places.findIndex((band) => band.length);
  const bands = places.slice(first).filter((band) => band.length);
  const height = bands.length * bandHeight;
  const canvas = element("canvas", { class: "icicle", role: "img", "aria-label": label });
  const hint = element("p", { class: "hint muted", "aria-hidden": "true" }, "Point at a feature; click to open it.");
  const value = COLOURINGS[colouring][1];

  const draw = () => {
    const wide = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    if (!wide) return;
    canvas.width = wide * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(document.documentElement);
    const [low, high, none, mark, paper] = ["--low", "--high", "--none", "--accent", "--paper"].map((name) => style.getPropertyValue(name).trim());
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const scale = wide / Math.max(1, width);
    bands.forEach((band, row) => {
      for (const [f, x, w] of band) {
        const shown = value(forest, f);
        const left = x * scale, size = w * scale, top = row * bandHeight;
        const gap = size > 3 ? 1 : 0;
        pen.globalAlpha = 1;
        pen.fillStyle = Number.isFinite(shown) ? low : none;
        pen.fillRect(left, top, Math.max(size - gap, 0.5), bandHeight - 1);
        if (Number.isFinite(shown)) {
          pen.globalAlpha = Math.min(Math.max(shown, 0), 1);
          pen.fillStyle = high;
          pen.fillRect(left, top, Math.max(size - gap, 0.5), bandHeight - 1);
        }
        pen.globalAlpha = 1;
        if (f === selected) {
          pen.strokeStyle = paper;
          pen.lineWidth = 5;
          pen.strokeRect(left + 2, top + 2, Math.max(size - gap - 4, 1), bandHeight - 5);
          pen.strokeStyle = mark;
          pen.lineWidth = 2.5;
          pen.strokeRect(left + 2, top + 2, Math.max(size - gap - 4, 1), bandHeight - 5);
        }
      }
    });
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const band = bands[Math.floor((event.clientY - box.top) / bandHeight)];
    const x = ((event.clientX - box.left) / box.width) * width;
    const hit = band?.findLast(([, from]) => from <= x);
    return hit && x < hit[1] + hit[2] ? hit[0] : -1;
  };
  canvas.addEventListener("mousemove", (event) => {
    const f = at(event);
    canvas.classList.toggle("over", f >= 0);
    hint.textContent = f < 0 ? "Point at a feature; click to open it." : `${forest.id(f)}  ${forest.name(f)}  (fires on ${percent(forest.frequency[f])} of tokens)`;
  });
  canvas.addEventListener("click", (event) => { if (at(event) >= 0) open(at(event)); });
  new ResizeObserver(draw).observe(canvas);
  document.addEventListener("theme", draw);
  return element("div", { class: "overview" }, canvas, hint);
}
