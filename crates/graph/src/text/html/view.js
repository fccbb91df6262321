// The page: what the user chose, and what is shown for it. Names are put on the page as text only.

const byId = (id) => document.getElementById(id);
const model = stepsOf(JSON.parse(byId("data").textContent));
const choices = [model.all, ...model.steps];

/** From how many lines on a graph is too long to be shown whole at first. */
const LONG = 100;
/** From how many on unchanged leaves that follow each other are folded, whatever the settings. */
const MANY_LEAVES = 8;

const SIGNS = { removed: "−", added: "+", moved: "→" };
const SPOKEN = { removed: "only before: ", added: "only after: ", moved: "moved: " };

/** The chosen step; where its rows and names are on the page; the value that stays marked. */
const state = { step: null, rows: [], elements: new Map(), folds: new Map(), names: new Map(), chosen: null };

/** An element with attributes and children; a text child is text, whatever is in it. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Text with the characters that have no looks, or that turn the writing direction, written out. */
function visible(text) {
  return text.replace(/[\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const fromTo = (before, after) => (before === after ? `${after}` : `${before} → ${after}`);
const signed = (number) => `${number > 0 ? "+" : "−"}${Math.abs(number)}`;
const difference = (before, after) => (before === after ? "" : ` (${signed(after - before)})`);

// The list of passes.

/** What a pass did, in a few words, and how much that matters. */
function outcome(step) {
  if (step === model.all) return { text: "", tone: "active" };
  if (!step.enabled) return { text: "off", tone: "idle" };
  if (step.matches === 0) return { text: "no match", tone: "idle" };
  return { text: counted(step.matches, "match", "matches"), tone: step.changed ? "active" : "idle" };
}

function passItem(step) {
  const { text, tone } = outcome(step);
  const most = Math.max(1, ...choices.map((one) => one.before.launches));
  const near = step.near_misses?.reduce((sum, miss) => sum + miss.count, 0) ?? 0;
  const sizes = `${counted(step.after.ops, "op")}, ${counted(step.after.launches, "launch", "launches")}`;
  const link = element(
    "a",
    { href: `#${encodeURIComponent(step.id)}`, class: `pass ${tone}`, title: step.description },
    element("span", { class: "pass-name" }, step.name),
    element("span", { class: "pass-outcome" }, text),
    element(
      "span",
      { class: "pass-detail" },
      element("span", {}, sizes),
      near > 0 ? element("span", { class: "near" }, counted(near, "near miss", "near misses")) : null,
      step.out_of_fuel ? element("span", { class: "near" }, "out of fuel") : null,
    ),
  );
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.width = `${(100 * step.after.launches) / most}%`;
  link.append(bar);
  step.link = link;
  return element("li", {}, link);
}

function showPasses() {
  byId("passes").replaceChildren(...choices.map(passItem));
  const { before, after } = model.all;
  const active = model.steps.filter((step) => step.changed).length;
  byId("totals").textContent =
    `${counted(model.steps.length, "pass", "passes")}, ${active} changed the graph · ` +
    `operations ${fromTo(before.ops, after.ops)} · launches ${fromTo(before.launches, after.launches)}`;
}

// What is said about the chosen pass.

function nearMissTable(misses) {
  const row = ({ reason, first, count }) =>
    element(
      "tr",
      {},
      element("td", {}, visible(reason)),
      element("td", {}, nameElement(first, "link", 0)),
      element("td", { class: "number" }, `${count}`),
    );
  const heads = ["Left alone because", "First place", "Places"].map((text) => element("th", { scope: "col" }, text));
  return element(
    "table",
    { class: "near-misses" },
    element("caption", {}, "Near misses"),
    element("thead", {}, element("tr", {}, heads)),
    element("tbody", {}, misses.map(row)),
  );
}

function showAbout(step) {
  const { text, tone } = outcome(step);
  const { before, after } = step;
  const fact = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
  const number = (name, from, to) => fact(name, fromTo(from, to) + difference(from, to));
  byId("about").replaceChildren(
    element("h2", {}, step.name, text ? element("span", { class: `tag ${tone}` }, text) : ""),
    element("p", { class: "description" }, `${step.description}.`),
    element(
      "dl",
      {},
      number("Operations", before.ops, after.ops),
      number("Launches", before.launches, after.launches),
      step.identity ? fact("Changes no bit because", step.identity) : null,
      step.setting ? fact("Setting", element("code", {}, step.setting)) : null,
      step.out_of_fuel ? fact("Fuel", "ran out in this pass or before it") : null,
    ),
    ...(step.near_misses?.length ? [nearMissTable(step.near_misses)] : []),
  );
}

// The two panes.

/** A value's name, which can be pointed at and followed. */
function nameElement(text, extra = "", tabindex = -1) {
  const attributes = { class: `name ${extra}`, role: "link", tabindex: `${tabindex}`, "data-name": text };
  return element("span", attributes, visible(text));
}

/** The tokens of a line as elements; those that the other side has otherwise are emphasized. */
function tokenElements({ line, other }) {
  const compared = other && other.text !== line.text ? other.tokens : null;
  let defined = false;
  return line.tokens.map(({ text, kind }, index) => {
    const differs = compared?.length === line.tokens.length && compared[index].text !== text;
    if (kind === "plain") return differs ? element("span", { class: "differs" }, text) : text;
    if (kind !== "name") return element("span", { class: `${kind}${differs ? " differs" : ""}` }, text);
    const isDefinition = line.name !== null && !defined;
    defined = true;
    const made = nameElement(text, `${isDefinition ? "definition" : "use"}${differs ? " differs" : ""}`);
    if (!state.names.has(text)) state.names.set(text, []);
    state.names.get(text).push(made);
    return made;
  });
}

function lineElement(marked, wanted) {
  const { line, mark } = marked;
  const found = wanted !== "" && line.text.toLowerCase().includes(wanted);
  return element(
    "li",
    { class: `line ${mark}${found ? " found" : ""}` },
    element("span", { class: "sign", "aria-hidden": "true" }, SIGNS[mark] ?? ""),
    mark ? element("span", { class: "spoken" }, SPOKEN[mark]) : null,
    element("code", {}, tokenElements(marked)),
  );
}

function blockElement(block, wanted) {
  const lines = element("ol", { class: "lines" }, block.lines.map((marked) => lineElement(marked, wanted)));
  const label = block.index === null ? null : `launch ${block.index}${block.label ? `: ${block.label}` : ""}`;
  const number = element("span", { class: "launch", title: label }, block.index === null ? "" : `${block.index}`);
  if (!block.isGroup) return element("div", { class: "block" }, number, lines);
  const box = element("div", { class: "box" }, element("div", { class: "label" }, block.label), lines);
  const kind = `block group${block.changed ? " changed" : ""}`;
  return element("div", { class: kind, role: "group", "aria-label": label }, number, box);
}

function rowElement(row) {
  const wanted = wantedText();
  const cell = (blocks) =>
    element("td", { class: blocks.length ? "" : "nothing" }, blocks.map((block) => blockElement(block, wanted)));
  const made = element("tr", { class: row.kind }, cell(row.before), cell(row.after));
  state.elements.set(row, made);
  return made;
}

/** What is folded, in words: `12 unchanged launches`. */
function foldTitle(rows) {
  if (rows[0].kind === "leaf") return counted(rows.length, "unchanged input or weight", "unchanged inputs and weights");
  return counted(rows.length, "unchanged launch", "unchanged launches");
}

function foldElement(rows) {
  const button = element("button", { type: "button" }, `Show ${foldTitle(rows)}`);
  const made = element("tr", { class: "fold" }, element("td", { colspan: "2" }, button));
  const open = () => {
    rows.forEach((row) => state.folds.delete(row));
    made.replaceWith(...rows.map(rowElement));
  };
  button.addEventListener("click", () => {
    open();
    byId("graph").focus({ preventScroll: true });
  });
  rows.forEach((row) => state.folds.set(row, open));
  return made;
}

function messageElement(text) {
  return element("tr", { class: "message" }, element("td", { colspan: "2" }, text));
}

function wantedText() {
  return byId("find").value.trim().toLowerCase();
}

/** Whether the filters let a row through. */
function isWanted(row) {
  const layer = byId("layer").value;
  const text = wantedText();
  return (
    (layer === "" || row.layers.has(layer)) &&
    (text === "" || row.lines.some((line) => line.text.toLowerCase().includes(text)))
  );
}

/** Rows in runs that are shown or folded alike. */
function runsOf(rows) {
  const runs = [];
  for (const row of rows) {
    const foldable = !row.changed && row.kind !== "return";
    const last = runs[runs.length - 1];
    if (last && last.kind === row.kind && last.foldable === foldable) {
      last.rows.push(row);
    } else {
      runs.push({ kind: row.kind, foldable, rows: [row] });
    }
  }
  return runs;
}

/** Why both panes are the same, if they are. */
function sameness(step) {
  if (step.changed) return null;
  if (step === model.all) return "No pass changed the graph.";
  if (!step.enabled) return "This pass is off. Nothing changed.";
  return step.matches === 0 ? "Nothing matched. Nothing changed." : "Nothing changed.";
}

function showRows() {
  const { step } = state;
  state.elements.clear();
  state.folds.clear();
  state.names.clear();
  state.rows = step.rows();
  const wanted = state.rows.filter(isWanted);
  const changedOnly = byId("changed").checked;
  const made = [];
  const same = sameness(step);
  if (same) made.push(messageElement(same));
  for (const { kind, foldable, rows } of runsOf(wanted)) {
    const folded = foldable && (changedOnly || (kind === "leaf" && rows.length > MANY_LEAVES));
    made.push(...(folded ? [foldElement(rows)] : rows.map(rowElement)));
  }
  if (wanted.length === 0) {
    made.push(messageElement("No line is of this layer and has this text."));
  }
  byId("rows").replaceChildren(...made);
  const launches = (rows) => rows.filter((row) => row.kind === "launch").flatMap((row) => row.after).length;
  const changed = launches(wanted.filter((row) => row.changed));
  const filtered = wanted.length < state.rows.length ? ` of ${launches(state.rows)}` : "";
  byId("shown").textContent = `${launches(wanted)}${filtered} launches, ${changed} changed`;
  mark(state.chosen);
}

function showHeads({ name, before, after }) {
  const head = (title, { launches }) => [
    element("strong", {}, title),
    ` ${name} · ${counted(launches, "launch", "launches")}`,
  ];
  byId("before").replaceChildren(...head("Before", before));
  byId("after").replaceChildren(...head("After", after));
}

// Names: mark, follow.

/** Marks a value's definition and uses in both panes, and nothing else. */
function mark(name) {
  document.querySelectorAll(".marked").forEach((made) => made.classList.remove("marked"));
  (state.names.get(name) ?? []).forEach((made) => made.classList.add("marked"));
}

/** Marks no value any more. */
function forget() {
  state.chosen = null;
  mark(null);
}

/** The row that defines a value, on one side if it does there. */
function definingRow(name, side) {
  const defines = (blocks) => blocks.some((block) => block.lines.some(({ line }) => line.name === name));
  const other = side === "before" ? "after" : "before";
  return state.rows.find((row) => defines(row[side])) ?? state.rows.find((row) => defines(row[other]));
}

/** Goes to a value's definition, unfolding it and dropping the filters if need be. */
function goToDefinition(name, side) {
  const row = definingRow(name, side);
  if (!row) return;
  state.chosen = name;
  if (!isWanted(row)) {
    byId("layer").value = "";
    byId("find").value = "";
    showRows();
  }
  state.folds.get(row)?.();
  mark(name);
  const own = [...state.elements.get(row).querySelectorAll(".definition.marked")];
  const target = own.find((made) => sideOf(made) === side) ?? own[0];
  target.scrollIntoView({ block: "center" });
  target.focus({ preventScroll: true });
  target.classList.remove("flash");
  // Asking for the width lets the animation begin anew.
  void target.offsetWidth;
  target.classList.add("flash");
}

function sideOf(made) {
  return made.closest("td")?.cellIndex === 0 ? "before" : "after";
}

function follow(made) {
  // A near miss names a value of the graph that the pass left.
  goToDefinition(made.dataset.name, made.classList.contains("link") ? "after" : sideOf(made));
}

function listenToNames() {
  const nameAt = (event) => event.target.closest?.(".name") ?? null;
  document.addEventListener("mouseover", (event) => mark(nameAt(event)?.dataset.name ?? state.chosen));
  document.addEventListener("focusin", (event) => mark(nameAt(event)?.dataset.name ?? state.chosen));
  document.addEventListener("click", (event) => {
    const made = nameAt(event);
    if (made) follow(made);
    else if (event.target.closest("#graph")) forget();
  });
}

/** Moves the focus to the name before or after the one that has it. */
function walk(step) {
  const names = [...document.querySelectorAll("#rows .name")];
  const at = names.indexOf(document.activeElement);
  const next = names[at === -1 ? 0 : Math.min(Math.max(at + step, 0), names.length - 1)];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "nearest" });
}

// Choices.

function choose(step) {
  if (state.step === step) return;
  state.step = step;
  choices.forEach((one) => one.link.removeAttribute("aria-current"));
  step.link.setAttribute("aria-current", "true");
  step.link.scrollIntoView({ block: "nearest" });
  showAbout(step);
  showHeads(step);
  showRows();
  byId("graph").scrollTop = 0;
}

/** The step that the address names, if it names one. */
function addressed() {
  const written = location.hash.slice(1);
  return choices.find((step) => encodeURIComponent(step.id) === written || step.id === written);
}

function chooseNeighbour(offset) {
  const at = choices.indexOf(state.step) + offset;
  const step = choices[at];
  if (!step) return;
  // The focus goes along, if it is in the list.
  if (document.activeElement?.closest("#passes")) step.link.focus();
  location.replace(`#${encodeURIComponent(step.id)}`);
  choose(step);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const active = document.activeElement;
  if (event.key === "Escape") {
    forget();
    if (active === byId("find")) {
      active.value = "";
      showRows();
    }
    return;
  }
  if (active?.matches("input[type=search], select")) return;
  const inGraph = Boolean(active?.closest("#graph"));
  const offset = { j: 1, k: -1, ArrowDown: inGraph ? 0 : 1, ArrowUp: inGraph ? 0 : -1 }[event.key] ?? 0;
  if (offset !== 0) {
    chooseNeighbour(offset);
  } else if (inGraph && event.key === "ArrowRight") {
    walk(1);
  } else if (inGraph && event.key === "ArrowLeft") {
    walk(-1);
  } else if (event.key === "Enter" && active?.matches(".name")) {
    follow(active);
  } else if (event.key === "/") {
    byId("find").focus();
  } else {
    return;
  }
  event.preventDefault();
}

function start() {
  // Without a script there is only the note that it needs one.
  byId("page").hidden = false;
  showPasses();
  byId("layer").append(...model.layers.map((layer) => element("option", { value: layer }, layer)));
  byId("layer").closest("label").hidden = model.layers.length === 0;
  byId("changed").checked = model.all.before.text.length >= LONG;
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("changed").addEventListener("change", showRows);
  byId("layer").addEventListener("change", showRows);
  let waiting = 0;
  byId("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(showRows, 120);
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("graph").focus();
  });
  document.addEventListener("keydown", onKey);
  listenToNames();
  window.addEventListener("hashchange", () => choose(addressed() ?? state.step));
  choose(addressed() ?? model.steps.find((step) => step.changed) ?? model.all);
}

start();
