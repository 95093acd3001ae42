// Building elements. Text from the data enters the page here only, as text nodes.

const MAX_SHOWN = 80; // longer tokens are cut until clicked

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, String(value)); // ARIA spells out true and false
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function drawing(name, properties = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

const ACTING = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/;
const INVISIBLE = new RegExp(`${ACTING.source}|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]`, "g");
const JOINER = /[\u200c\u200d]/; // within words, as in Persian, and within emoji
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

// Control characters, direction marks and broken pairs as something one sees, so that none acts on the page. Joiners
// stay between characters beyond ASCII; `before` and `after` are what the text stands between.
function visible(text, before = "", after = "") {
  const isJoined = (unit) => unit > "\x7f" && !ACTING.test(unit);
  return text.replace(INVISIBLE, (character, at) => {
    if (JOINER.test(character) && isJoined(text[at - 1] ?? before.at(-1)) && isJoined(text[at + 1] ?? after[0])) return character;
    if (character === "\n") return "↵";
    if (character === "\t") return "⇥";
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

// Parts, each of which keeps its place whichever way it is written.
function listed(parts) {
  return (parts.some((part) => RIGHT_TO_LEFT.test(part)) ? parts.map((part) => `\u2068${part}\u2069`) : parts).join(" · ");
}

function clipped(text, length = MAX_SHOWN, before = "", after = "") {
  const shown = visible(text, before, after);
  return shown.length <= length ? shown : `${shown.slice(0, length)}… (${text.length.toLocaleString("en")} characters)`;
}

function percent(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0 %";
  const shown = 100 * value;
  return `${shown >= 10 ? shown.toFixed(0) : shown >= 0.1 ? shown.toFixed(1) : shown.toPrecision(1)} %`;
}

function number(value, digits = 2) {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

function significant(value) {
  return Number.isFinite(value) ? Number(value.toPrecision(3)).toString() : "–";
}

// A term whose explanation shows when it is pointed at or has the focus.
let explanations = 0;
function explained(term, explanation, kind = "term") {
  const id = `explanation-${explanations++}`;
  const box = element("span", { class: "explanation", role: "tooltip", id }, explanation);
  // Below the term, or above it, so that one sees all of it.
  const place = () => {
    box.style.left = box.style.top = "";
    const { right, bottom, height } = box.getBoundingClientRect(), room = main.getBoundingClientRect();
    box.style.left = `${Math.min(0, room.right - 24 - right)}px`;
    if (bottom > room.bottom) box.style.top = `${-height}px`;
  };
  return element("span", { class: "explained", onpointerover: place, onfocusin: place }, element("button", { type: "button", class: kind, "aria-describedby": id }, term), box);
}

// A table that scrolls sideways where it is too wide, and says so as long as there is more to the right.
function scrolling(label, head, rows) {
  const region = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, element("table", {}, head, rows));
  const box = element("div", { class: "scroller" }, region, element("p", { class: "cue", "aria-hidden": "true" }, "Scroll sideways for more →"));
  const look = () => box.classList.toggle("more-right", region.scrollLeft + region.clientWidth < region.scrollWidth - 1);
  region.addEventListener("scroll", look);
  new ResizeObserver(look).observe(region);
  return box;
}

function section(title, ...children) {
  return element("section", {}, element("h2", {}, title), ...children);
}
