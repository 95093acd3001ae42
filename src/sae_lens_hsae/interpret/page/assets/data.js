// The blocks in the page, decoded when they are first asked for.

const TYPES = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array,
};
const MAX_BLOCKS = 60; // decoded feature blocks that stay in memory

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const raw = atob(base64);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function decodeBlock(name) {
  const holder = document.getElementById(`block-${name}`);
  if (!holder) throw new Error(`this page lacks its part ${name}; write it again`);
  const stream = new Blob([bytesOf(holder.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const headerLength = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerLength)));
  const arrays = {};
  for (const [key, [type, offset, length]] of Object.entries(header.arrays))
    arrays[key] = new TYPES[type](buffer, 4 + headerLength + offset, length);
  return { ...header.plain, ...arrays };
}

function queryWords(text) {
  const words = text.split(/[\s·]+/).filter(Boolean);
  return words.length ? words : [text];
}

// Whether a text stands in another with no letter or digit on either side.
function holdsWord(whole, text) {
  const ends = (character = "") => !/[\p{L}\p{N}]/u.test(character);
  for (let at = whole.indexOf(text); at >= 0; at = whole.indexOf(text, at + 1)) if (ends(whole[at - 1]) && ends(whole[at + text.length])) return true;
  return false;
}

// The forest: the first block's arrays, and what follows from the parents.
class Forest {
  constructor(block, tokens) {
    Object.assign(this, block);
    this.tokens = tokens;
    const parting = new Set(this.separators);
    this.isSeparator = tokens.map((text) => parting.has(text)); // tokens that part texts, such as [SEP]
    this.allParents = this.parents;
    this.n = this.parents.length;
    this.nChildren = new Uint32Array(this.n); // with those whose edges are left out
    this.nthChild = this.parents.map((parent) => (parent >= 0 ? this.nChildren[parent]++ : 0));
    this.childrenBefore = new Uint32Array(this.n + 1);
    this.nChildren.forEach((count, f) => { this.childrenBefore[f + 1] = this.childrenBefore[f] + count; });
    this.offsets = [0];
    for (const width of this.levelWidths) this.offsets.push(this.offsets.at(-1) + width);
    this.levels = new Uint8Array(this.n);
    this.levelWidths.forEach((_, level) => this.levels.fill(level, this.offsets[level], this.offsets[level + 1]));
    this.maxFrequency = this.frequency.reduce((most, each) => Math.max(most, each), 0);
    // One firing is the least there can be; below a ten-thousandth of the most frequent all look alike.
    this.minFrequency = Math.max(this.frequency.reduce((least, each) => (each > 0 ? Math.min(least, each) : least), 1), this.maxFrequency / 10000) * 0.8;
    this.hideCopies = false;
    this.names = new Array(this.n);
    this.said = new Array(this.n);
    this.blocks = new Map();
    this.keepEdges(-Infinity);
  }

  // Leave out edges below a similarity, but for those to copies; and what follows from the parents that are left.
  keepEdges(least) {
    this.least = least;
    this.parents = this.allParents.map((parent, f) => (parent < 0 || least === -Infinity || this.isCopy[f] || this.similarity(f) >= least ? parent : -1));
    this.childStart = new Uint32Array(this.n + 1);
    for (const parent of this.parents) if (parent >= 0) this.childStart[parent + 1]++;
    for (let i = 0; i < this.n; i++) this.childStart[i + 1] += this.childStart[i];
    this.childList = new Uint32Array(this.childStart[this.n]);
    const next = this.childStart.slice();
    this.parents.forEach((parent, child) => { if (parent >= 0) this.childList[next[parent]++] = child; });
    this.tops = Array.from(this.parents.keys()).filter((f) => this.parents[f] < 0);
    this.size = new Uint32Array(this.n).fill(1);
    this.concepts = new Uint32Array(this.n); // distinct features in the tree below each one
    for (let i = this.n - 1; i >= 0; i--) {
      this.concepts[i] += 1 - this.isCopy[i];
      if (this.parents[i] < 0) continue;
      this.size[this.parents[i]] += this.size[i];
      this.concepts[this.parents[i]] += this.concepts[i];
    }
    this.worth = Array.from(this.families).filter((f) => this.concepts[f] >= 3);
  }

  children(feature) { return this.childList.subarray(this.childStart[feature], this.childStart[feature + 1]); }
  level(feature) { return this.levels[feature]; }

  // Children and parent as they are shown: where copies are hidden, what is below or above a copy stands in its place.
  below(feature, hideCopies = this.hideCopies) {
    const children = Array.from(this.children(feature));
    return hideCopies ? children.flatMap((child) => (this.isCopy[child] ? this.below(child, true) : [child])) : children;
  }
  above(feature, hideCopies = this.hideCopies) {
    let parent = this.parents[feature];
    while (hideCopies && parent >= 0 && this.isCopy[parent]) parent = this.parents[parent];
    return parent;
  }
  // The feature itself, or the one that a hidden copy repeats.
  shown(feature) {
    let shown = feature;
    while (this.hideCopies && this.isCopy[shown]) shown = this.parents[shown];
    return shown;
  }
  // P(parent | child) − 2 P(parent) of a feature's edge to its own parent, by which parents are chosen by default.
  similarity(feature) { return this.parentGivenChild[feature] - 2 * this.frequency[this.allParents[feature]]; }
  treeSize(feature) { return (this.hideCopies ? this.concepts : this.size)[feature]; }
  id(feature) { return `${this.levels[feature]}/${feature - this.offsets[this.levels[feature]]}`; }
  path(feature) {
    const path = [feature];
    while (this.parents[path[0]] >= 0) path.unshift(this.parents[path[0]]);
    return path;
  }
  // As `path`, without hidden copies on the way.
  trail(feature) { return this.path(feature).filter((each) => each === feature || !(this.hideCopies && this.isCopy[each])); }
  isUnassigned(feature) { return this.levels[feature] > 0 && this.allParents[feature] < 0; }
  strongestTokens(feature) {
    return Array.from(this.strongest.subarray(feature * this.nStrongest, (feature + 1) * this.nStrongest))
      .filter((token) => token > 0).map((token) => this.tokens[token]);
  }
  // The feature of a name such as 2/17, -1 if there is none.
  withId(text) {
    const [, level, index] = /^(\d+)\/(\d+)$/.exec(text)?.map(Number) ?? [];
    return index < this.levelWidths[level] ? this.offsets[level] + index : -1;
  }
  // How well each feature fits a query: 0 unless every word is in its name or strongest tokens, more if they stand there
  // as in the query, and most for its own number.
  finder(text) {
    const words = queryWords(text), exact = this.withId(text);
    const scored = (part) => {
      const hits = this.tokensWith(part);
      return (f) => {
        let score = part.trim() ? this.nameScore(f, part) : 0;
        for (let i = 0; i < this.nStrongest; i++) {
          const hit = hits[this.strongest[f * this.nStrongest + i]];
          if (hit) score = Math.max(score, (hit === 2 ? 200 : 0) + this.nStrongest - i);
        }
        return score;
      };
    };
    const whole = scored(text), each = words.length > 1 ? words.map(scored) : [whole];
    return (f) => {
      if (f === exact) return Infinity;
      const asOne = whole(f) || (words.length > 1 && this.nameParts(f).join(" · ").toLowerCase().includes(text));
      const scores = asOne ? [1e6 + asOne] : each.map((score) => score(f));
      return scores.every(Boolean) ? scores.reduce((a, b) => a + b) : 0;
    };
  }
  // The most for a part of the name, the earlier and the fewer the better; then a word of it; then a piece of a word,
  // which is less than a strongest token.
  nameScore(feature, text) {
    const parts = (this.said[feature] ??= this.nameParts(feature).map((part) => part.toLowerCase()));
    const few = (count) => Math.min(count, 9);
    return Math.max(0, ...parts.map((part, i) => (part === text ? 400 - 10 * few(i) - few(parts.length) : holdsWord(part, text) ? 300 - few(i) : part.includes(text) ? 100 - few(i) : 0)));
  }
  // Of each token 2 if it is the text, 1 if it holds it, and 0 otherwise.
  tokensWith(text) {
    return Uint8Array.from(this.tokens, (token) => {
      const plain = token.trim().toLowerCase() || token;
      return plain === text ? 2 : plain.includes(text) ? 1 : 0;
    });
  }
  // The parts of its label, or else the tokens it is strongest on.
  nameParts(feature) {
    const label = visible(this.labels[feature] ?? "");
    return label ? label.split(" · ") : this.strongestTokens(feature).slice(0, 5).map((token) => clipped(token.trim() || token, 24));
  }
  name(feature) {
    this.names[feature] ??= listed(this.nameParts(feature)) || (this.frequency[feature] > 0 ? "(no token stands out)" : "(never fired)");
    return this.names[feature];
  }

  // What is kept of one feature: views into its block.
  async feature(feature) {
    const index = Math.floor(feature / this.perBlock);
    if (!this.blocks.has(index)) this.blocks.set(index, decodeBlock(`features-${index}`));
    const pending = this.blocks.get(index);
    this.blocks.delete(index); // to the end of the order of last use
    this.blocks.set(index, pending);
    if (this.blocks.size > MAX_BLOCKS) this.blocks.delete(this.blocks.keys().next().value);
    return this.view(await pending, feature, index * this.perBlock);
  }

  view(block, feature, first) {
    const i = feature - first, window = this.window;
    const { top, sampled, parent_alone, child_alone } = this.kinds;
    const nSlots = top + sampled + parent_alone + child_alone, nFamily = top + sampled;
    const part = (array, size) => array.subarray(i * size, (i + 1) * size);
    const children = this.children(feature);
    const firstChild = this.childrenBefore[feature] - this.childrenBefore[first];
    const bounds = [0, top, nFamily, nFamily + parent_alone, nSlots];
    const contexts = (kind) => {
      const found = [];
      for (let slot = bounds[kind]; slot < bounds[kind + 1]; slot++) {
        if (block.numbers[i * nSlots + slot] < 0) continue;
        const from = (i * nSlots + slot) * window;
        found.push({
          number: block.numbers[i * nSlots + slot],
          peak: block.peaks[i * nSlots + slot],
          tokens: block.tokens.subarray(from, from + window),
          shades: block.shades.subarray(from, from + window),
          parentShades: block.parentShades.subarray(from, from + window),
          childShades: slot >= nFamily ? [] : Array.from(children, (child) => {
            const at = ((firstChild + this.nthChild[child]) * nFamily + slot) * window;
            return block.childShades.subarray(at, at + window);
          }),
        });
      }
      return found;
    };
    return {
      top: contexts(0), sampled: contexts(1), parentAlone: contexts(2), childAlone: contexts(3),
      histogram: part(block.histogram, this.binEdges.length - 1),
      quantileValues: part(block.quantiles, this.quantiles.length),
      nearest: Array.from(part(block.nearest, this.nNearest)).filter((other) => other >= 0),
      nearestCosines: part(block.nearestCosines, this.nNearest),
      promoted: this.nPromoted ? this.logits(part(block.promotedTokens, this.nPromoted), part(block.promotedLogits, this.nPromoted)) : null,
      suppressed: this.nPromoted ? this.logits(part(block.suppressedTokens, this.nPromoted), part(block.suppressedLogits, this.nPromoted)) : null,
    };
  }

  logits(tokens, values) { return Array.from(tokens, (token, i) => [this.tokens[token], values[i]]); }
}
