// The forest as a tree of rows. Only the rows in view are in the page.

const ROW_HEIGHT = 30;
// Key in links, name, and what it means; the first is the choice at first, which links leave out.
const FREQUENCIES = [
  ["", "any share of tokens", () => true],
  ["over-10", "over 10 %", (f) => f > 0.1],
  ["1-10", "1 to 10 %", (f) => f > 0.01 && f <= 0.1],
  ["0.1-1", "0.1 to 1 %", (f) => f > 0.001 && f <= 0.01],
  ["below-0.1", "below 0.1 %", (f) => f > 0 && f <= 0.001],
  ["never", "none (never fired)", (f) => f === 0],
];

class Tree {
  constructor(forest, open, changed, edgesChanged) {
    this.forest = forest;
    this.open = open;
    this.changed = changed;
    this.edgesChanged = edgesChanged;
    this.box = document.getElementById("tree");
    this.holder = document.getElementById("rows");
    this.expanded = new Set();
    this.active = 0;
    this.selected = -1;
    // Key in links, name, value, and how the value is shown beside each feature.
    const orLast = (value) => (Number.isFinite(value) ? value : -1);
    this.sorts = [
      ["", "features in its tree", (f) => forest.treeSize(f), (f) => forest.treeSize(f).toLocaleString("en")],
      ["frequency", "share of tokens it fires on", (f) => forest.frequency[f], (f) => percent(forest.frequency[f])],
      ["detection", "detection by tokens", (f) => orLast(forest.detection[f]), (f) => number(forest.detection[f])],
      ["agreement", "agreement with children", (f) => orLast(forest.agreement[f]), (f) => percent(forest.agreement[f])],
      ["number", "level and number", (f) => -f, () => ""],
    ];
    // Key in links, name, and the least similarity of the edges that are shown.
    this.cuts = [["", "all", -Infinity], ["not-weak", `copies, and similarity from ${forest.weak} on`, forest.weak], ["clear", `copies, and similarity from ${forest.clear} on`, forest.clear]];
    this.controls();
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.rebuild();
  }

  controls() {
    const change = () => {
      this.rebuild();
      this.changed();
    };
    const changeEdges = () => {
      this.setEdges();
      change();
      this.edgesChanged();
    };
    const fill = (id, choices, then = change) => {
      const select = document.getElementById(id);
      select.replaceChildren(...choices.map(([key, name]) => element("option", { value: key }, name)));
      select.addEventListener("change", then);
      return select;
    };
    this.levelFilter = fill("filter-level", [["", "all"], ...this.forest.levelWidths.map((_, level) => [`${level}`, `${level}`])]);
    this.frequencyFilter = fill("filter-frequency", FREQUENCIES);
    this.sort = fill("sort", this.sorts);
    this.edges = fill("edges", this.cuts, changeEdges);
    this.textFilter = document.getElementById("filter-text");
    this.textFilter.addEventListener("input", change);
    this.hideCopies = document.getElementById("hide-copies");
    this.hideCopies.addEventListener("change", changeEdges);
  }

  setEdges() {
    this.forest.hideCopies = this.hideCopies.checked;
    const [, , least] = this.cuts[this.edges.selectedIndex];
    if (least !== this.forest.least) this.forest.keepEdges(least);
  }

  // How the list is filtered and sorted, for links.
  state() {
    return { text: this.textFilter.value.trim(), level: this.levelFilter.value, fires: this.frequencyFilter.value, sort: this.sort.value, edges: this.edges.value, copies: this.hideCopies.checked ? "hidden" : "" };
  }

  restore(state) {
    this.textFilter.value = state.text ?? "";
    for (const [select, value] of [[this.levelFilter, state.level], [this.frequencyFilter, state.fires], [this.sort, state.sort], [this.edges, state.edges]]) {
      select.value = value ?? "";
      if (select.selectedIndex < 0) select.value = ""; // a link may say anything
    }
    this.hideCopies.checked = state.copies === "hidden";
    this.setEdges();
    this.rebuild();
  }

  // Features that match, or null if no filter is set; with their ancestors in `this.kept`.
  match() {
    const { forest } = this;
    const text = plainQuery(this.textFilter.value);
    const level = this.levelFilter.value === "" ? -1 : Number(this.levelFilter.value);
    const [, , fits] = FREQUENCIES[this.frequencyFilter.selectedIndex];
    this.kept = null;
    if (!text && level < 0 && this.frequencyFilter.value === "") return null;
    const found = new Set();
    this.kept = new Set();
    const fit = forest.finder(text), exact = forest.withId(text);
    const says = (f) => (exact >= 0 ? f === exact : forest.id(f).includes(text) || fit(f) > 0);
    for (let f = 0; f < forest.n; f++) {
      if (forest.hideCopies && forest.isCopy[f]) continue;
      if (level >= 0 && forest.level(f) !== level) continue;
      if (!fits(forest.frequency[f])) continue;
      if (text && !says(f)) continue;
      found.add(f);
      for (const each of forest.path(f)) this.kept.add(each);
    }
    return found;
  }

  // While a filter is set the branches that lead to matches are open unless closed by hand; both states are kept.
  isOpen(key) { return this.kept ? !this.expanded.has(`closed ${key}`) : this.expanded.has(`open ${key}`); }
  setOpen(key, open) {
    const name = `${this.kept ? "closed" : "open"} ${key}`;
    if (open === !this.kept) this.expanded.add(name);
    else this.expanded.delete(name);
  }

  rebuild() {
    const current = this.rows?.[this.active];
    this.matches = this.match();
    const { forest, kept } = this;
    const value = this.sorts[this.sort.selectedIndex][2];
    const ordered = (features) => Array.from(features).filter((f) => !kept || kept.has(f)).sort((a, b) => value(b) - value(a) || a - b);
    this.rows = [];
    const add = (features, depth) => features.forEach((feature, i) => {
      const children = ordered(forest.below(feature));
      const open = this.isOpen(feature);
      this.rows.push({ feature, depth, position: i + 1, size: features.length, leaf: !children.length, open });
      if (children.length && open) add(children, depth + 1);
    });
    const isTree = (f) => forest.below(f).length > 0;
    const trees = ordered(forest.tops.filter(isTree));
    const alone = forest.levelWidths.map((_, level) => [level, ordered(forest.tops.filter((f) => forest.level(f) === level && !isTree(f)))]).filter(([, of]) => of.length);
    const size = trees.length + alone.length;
    add(trees, 0);
    this.rows.forEach((row) => { if (row.depth === 0) row.size = size; });
    alone.forEach(([level, features], i) => {
      const key = `alone-${level}`;
      const open = this.isOpen(key);
      this.rows.push({ group: key, level, count: features.length, depth: 0, position: trees.length + i + 1, size, leaf: false, open });
      if (open) add(features, 1);
    });
    const same = current ? this.rows.findIndex((row) => (current.group ? row.group === current.group : row.feature === current.feature)) : 0;
    this.active = Math.max(0, same);
    const nShown = forest.hideCopies ? forest.n - forest.isCopy.reduce((sum, each) => sum + each, 0) : forest.n;
    const n = (count) => count.toLocaleString("en");
    document.getElementById("count").textContent = this.matches
      ? `${n(this.matches.size)} of ${n(nShown)} features`
      : `${n(trees.length)} trees, ${n(nShown)} features`;
    const { sort, ...filters } = this.state();
    document.getElementById("menu").textContent = Object.values(filters).some(Boolean) ? "Forest (filtered)" : "Forest";
    const [key, name] = this.sorts[this.sort.selectedIndex];
    document.getElementById("column").textContent = key === "number" ? "" : name;
    this.draw();
  }

  draw() {
    const { forest } = this;
    this.holder.style.height = `${this.rows.length * ROW_HEIGHT}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_HEIGHT) - 5);
    const last = Math.min(this.rows.length, first + Math.ceil(this.box.clientHeight / ROW_HEIGHT) + 10);
    const shown = [];
    for (let i = first; i < last; i++) shown.push(this.row(i));
    if (this.rows.length && (this.active < first || this.active >= last)) shown.push(this.row(this.active));
    this.holder.replaceChildren(...shown);
    if (!this.rows.length) this.holder.replaceChildren(element("p", { class: "muted none" }, forest.n ? "No feature matches the filter." : "The forest is empty."));
    if (this.rows.length) this.box.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  row(i) {
    const { forest } = this;
    const row = this.rows[i];
    const chosen = row.feature !== undefined && row.feature === this.selected;
    const dim = this.matches && row.feature !== undefined && !this.matches.has(row.feature);
    const node = element(
      "div",
      {
        id: `row-${i}`, role: "treeitem", "aria-level": row.depth + 1, "aria-posinset": row.position, "aria-setsize": row.size,
        "aria-expanded": row.leaf ? undefined : row.open, "aria-selected": chosen,
        class: `row${chosen ? " selected" : ""}${i === this.active ? " active" : ""}${dim ? " dim" : ""}`,
        onclick: (event) => this.click(i, event),
      },
      element("span", { class: `twist${row.leaf ? "" : row.open ? " open" : " shut"}`, "aria-hidden": "true" }),
    );
    node.style.top = `${i * ROW_HEIGHT}px`;
    node.style.paddingLeft = `${6 + row.depth * 16}px`;
    if (row.group) {
      node.append(element("span", { class: "name" }, `Standing alone on level ${row.level}`), element("span", { class: "share" }, row.count.toLocaleString("en")));
    } else {
      node.append(
        element("span", { class: "id" }, forest.id(row.feature)),
        element("span", { class: "name", dir: "auto" }, forest.name(row.feature)),
        copyBadge(forest, row.feature) ?? "",
        againBadge(forest, row.feature, "✓") ?? "",
        weakBadge(forest, row.feature) ?? "",
        element("span", { class: "share" }, this.sorts[this.sort.selectedIndex][3](row.feature)),
      );
    }
    return node;
  }

  click(i, event) {
    this.active = i;
    const row = this.rows[i];
    if (row.group || event.target.classList.contains("twist")) this.toggle(i);
    else this.open(row.feature);
    this.draw();
  }

  toggle(i, open) {
    const row = this.rows[i];
    if (row.leaf || open === row.open) return;
    this.setOpen(row.group ?? row.feature, !row.open);
    this.rebuild();
  }

  key(event) {
    const row = this.rows[this.active];
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW_HEIGHT) - 1);
    let to = this.active;
    if (event.key === "ArrowDown") to += 1;
    else if (event.key === "ArrowUp") to -= 1;
    else if (event.key === "PageDown") to += page;
    else if (event.key === "PageUp") to -= page;
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = this.rows.length - 1;
    else if (event.key === "ArrowRight") {
      if (!row.leaf && !row.open) this.toggle(this.active, true);
      else if (!row.leaf) to += 1;
    } else if (event.key === "ArrowLeft") {
      if (!row.leaf && row.open) this.toggle(this.active, false);
      else if (row.depth > 0) while (this.rows[to].depth >= row.depth) to -= 1;
    } else if (event.key === "Enter" || event.key === " ") {
      if (row.group) this.toggle(this.active);
      else this.open(row.feature);
    } else return;
    event.preventDefault();
    this.active = Math.min(Math.max(to, 0), this.rows.length - 1);
    this.show(this.active);
  }

  show(i) {
    const top = i * ROW_HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + ROW_HEIGHT > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW_HEIGHT - this.box.clientHeight;
    this.draw();
  }

  // Select a feature and open the branches that lead to it; -1 for none.
  select(feature) {
    this.selected = feature < 0 ? feature : this.forest.shown(feature);
    if (feature >= 0) {
      const path = this.forest.trail(this.selected);
      if (!this.forest.below(path[0]).length) this.setOpen(`alone-${this.forest.level(path[0])}`, true);
      path.slice(0, -1).forEach((each) => this.setOpen(each, true));
      this.rebuild();
      const at = this.rows.findIndex((row) => row.feature === this.selected);
      if (at >= 0) {
        this.active = at;
        this.show(at);
      }
    }
    this.draw();
  }
}
