// The picture of a forest: one band per level, every feature above its children, as wide as the leaves below it.

const HIGH = 46; // pixels; from here on a band has room for numbers, and the parts of a name below each other
const LINE_HEIGHT = 16;
const TO_HIT = 6; // pixels; narrower features are not opened by a click, which zooms in instead
const TO_NAME = 30;
const NEARER = 8;
const COLOURINGS = [
  ["", "frequency", (forest, f) => (forest.frequency[f] > 0 ? Math.log(forest.frequency[f] / forest.minFrequency) / Math.log(forest.maxFrequency / forest.minFrequency) : NaN)],
  ["detection", "detection by tokens", (forest, f) => forest.detection[f]],
  ["agreement", "agreement with children", (forest, f) => forest.agreement[f]],
  ["parent", "how often its parent fires too", (forest, f) => (forest.parents[f] < 0 ? NaN : forest.parentGivenChild[f])],
  ["child", "its share of its parent", (forest, f) => (forest.parents[f] < 0 ? NaN : forest.childGivenParent[f])],
  ["similarity", "similarity to its parent", (forest, f) => (forest.parents[f] < 0 ? NaN : forest.similarity(f))],
  ["again", "found again", (forest, f) => (forest.parents[f] < 0 ? NaN : forest.foundAgain[f] / forest.otherTrainings.length)],
];

function colouringsOf(forest) { return COLOURINGS.filter(([key]) => key !== "again" || forest.otherTrainings.length); }

// Features with their place: x and width in leaves. Children stand in the order of the cards.
function layout(forest, tops) {
  const leaves = new Map(), children = new Map();
  const count = (f) => {
    let sum = 0;
    children.set(f, forest.below(f).sort((a, b) => narrowing(forest, b) - narrowing(forest, a) || a - b));
    for (const child of children.get(f)) sum += count(child);
    leaves.set(f, Math.max(1, sum));
    return Math.max(1, sum);
  };
  const places = forest.levelWidths.map(() => []);
  const put = (f, x) => {
    places[forest.level(f)].push([f, x, leaves.get(f)]);
    for (const child of children.get(f)) {
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

function channels(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

// Whichever of two inks stands out more from a colour.
function inkOn(colour, one, other) {
  const light = ([r, g, b]) => 0.3 * r + 0.59 * g + 0.11 * b;
  const paper = light(colour);
  return Math.abs(light(channels(one)) - paper) > Math.abs(light(channels(other)) - paper) ? one : other;
}

// As much of a text as fits.
function fitting(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let length = Math.min(text.length, Math.floor(width / 4));
  while (length > 0 && pen.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return length ? `${text.slice(0, length)}…` : "";
}

// `part` is what of the width is shown, in leaves. `zoom` is told what a click zooms to, `atOnce` only where features are
// too narrow to be opened.
function icicle(forest, { places, width }, { open, selected = -1, colouring = COLOURINGS[0], bandHeight, label, part = [0, width], zoom, atOnce = false }) {
  const bands = places.filter((band) => band.length);
  const height = bands.length * bandHeight;
  const canvas = element("canvas", { class: "icicle", role: "img", "aria-label": label });
  const advice = atOnce ? "Point at a feature; click to open it, or where features are narrow to see them on the map." : "Point at a feature; click to zoom in, and once more to open it.";
  const hint = element("p", { class: "hint muted", "aria-hidden": "true" }, advice);
  const [, , value] = colouring;
  const [from, to] = part;

  const draw = () => {
    const wide = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    if (!wide) return;
    canvas.width = wide * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(document.documentElement);
    const [low, high, none, mark, paper, ink] = ["--low", "--high", "--none", "--accent", "--paper", "--ink"].map((name) => style.getPropertyValue(name).trim());
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const scale = wide / Math.max(1, to - from);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "middle";
    pen.direction = "ltr";
    bands.forEach((band, row) => {
      for (const [f, x, w] of band) {
        if (x + w <= from || x >= to) continue;
        const shown = value(forest, f);
        const left = Math.max(0, (x - from) * scale), size = Math.min(wide, (x + w - from) * scale) - left, top = row * bandHeight;
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
        if (size > TO_NAME) {
          const strength = Number.isFinite(shown) ? Math.min(Math.max(shown, 0), 1) : 0;
          const under = channels(Number.isFinite(shown) ? low : none), over = channels(high);
          pen.save();
          pen.beginPath();
          pen.rect(left, top, size - gap - 3, bandHeight - 1);
          pen.clip();
          pen.fillStyle = inkOn(under.map((c, i) => c + strength * (over[i] - c)), ink, paper);
          const room = size - gap - 8, ends = bandHeight < HIGH ? [] : forest.isCopy[f] ? [forest.id(f), "copy"] : [forest.id(f)];
          const name = forest.name(f), parts = bandHeight >= HIGH && pen.measureText(name).width > room ? forest.nameParts(f) : [];
          const lines = [...(parts.length ? parts : [name]).slice(0, Math.max(1, Math.floor(bandHeight / LINE_HEIGHT) - ends.length)), ...ends];
          lines.forEach((line, i) => pen.fillText(fitting(pen, line, room), left + 4, top + bandHeight / 2 + (i - (lines.length - 1) / 2) * LINE_HEIGHT));
          pen.restore();
        }
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
    const x = from + ((event.clientX - box.left) / box.width) * (to - from);
    const hit = band?.findLast(([, left]) => left <= x);
    return hit && x < hit[1] + hit[2] ? { f: hit[0], left: hit[1], right: hit[1] + hit[2], x, pixels: (hit[2] * box.width) / (to - from) } : null;
  };
  canvas.addEventListener("mousemove", (event) => {
    const f = at(event)?.f;
    canvas.classList.toggle("over", f !== undefined);
    hint.textContent = f === undefined ? advice : `${forest.id(f)}  ${forest.name(f)}  (fires on ${percent(forest.frequency[f])} of tokens)`;
  });
  canvas.addEventListener("click", (event) => {
    const hit = at(event);
    if (!hit) return;
    if (hit.pixels < TO_HIT) zoom(...around(hit.x, (to - from) / NEARER, width));
    else if (!atOnce && hit.right - hit.left > 1 && hit.right - hit.left < to - from) zoom(hit.left, hit.right);
    else open(hit.f);
  });
  new ResizeObserver(draw).observe(canvas);
  canvas.addEventListener("theme", draw);
  return element("div", { class: "overview" }, canvas, hint);
}

// A part of the given size with `x` in its middle, in whole leaves, within the picture.
function around(x, size, width) {
  const whole = Math.min(width, Math.max(2, Math.round(size)));
  const from = Math.min(Math.max(0, Math.round(x - whole / 2)), width - whole);
  return [from, from + whole];
}
