// What there is to show: the page's data, taken apart. Nothing here touches the document.

/** A name, a comment, a word, blanks, or one other character. */
const TOKEN = /(%"(?:\\.|[^"\\])*"|%[\w.\/-]+)|(;.*)|([\w.+-]+)|(\s+|.)/gsu;

/**
 * A line of the text form as tokens, each with its text and its kind: `keyword`, `name`, `type`, `op`, `attribute`,
 * `value`, `comment` or `plain`.
 */
function tokensOf(text) {
  const tokens = [];
  // What a word is depends on what came before it: `%name: type = op<attribute=value>(%name)`.
  let word = "keyword";
  let depth = 0;
  for (const [whole, name, comment, isWord] of text.matchAll(TOKEN)) {
    let kind = "plain";
    if (name !== undefined) {
      kind = "name";
    } else if (comment !== undefined) {
      kind = "comment";
    } else if (isWord !== undefined) {
      kind = word;
      if (word === "keyword" || word === "op") word = "value";
    } else if (whole === ":" && depth === 0) {
      word = "type";
    } else if (whole === "=" && depth === 0) {
      word = "op";
    } else if (whole === "=" && tokens.length > 0) {
      tokens[tokens.length - 1].kind = "attribute";
    } else if ("<[(".includes(whole)) {
      depth += 1;
    } else if (">])".includes(whole)) {
      depth -= 1;
    }
    tokens.push({ text: whole, kind });
  }
  return tokens;
}

/** A line of the text form: what it says, what it defines, and the layer that the defined name belongs to, if any. */
function lineOf(text) {
  const trimmed = text.trim();
  const tokens = tokensOf(trimmed);
  const keyword = tokens[0]?.kind === "keyword" ? tokens[0].text : "";
  const defines = tokens.some((token) => token.text === ":" && token.kind === "plain");
  const name = defines ? (tokens.find((token) => token.kind === "name")?.text ?? null) : null;
  const layer = /(?:^%"?|\.)layers\.(\d+)\./.exec(name ?? "")?.[1] ?? null;
  return { text: trimmed, tokens, keyword, name, layer };
}

/** The lines of a graph by what they are about: leaves, launches in order, and what the step returns. */
function graphOf(lines) {
  const graph = { leaves: [], launches: [], results: [], launchOf: new Map(), lineOf: new Map() };
  let open = null;
  for (const line of lines) {
    if (line.keyword === "group") {
      open = { label: line.text.replace(/^group \{( ; launch \d+:)?\s*/, ""), isGroup: true, lines: [] };
      graph.launches.push(open);
    } else if (line.text === "}") {
      open = null;
    } else if (line.keyword === "return") {
      graph.results.push(line);
    } else if (line.name !== null && line.keyword !== "") {
      graph.leaves.push(line);
    } else if (line.name !== null && open) {
      open.lines.push(line);
    } else if (line.name !== null) {
      graph.launches.push({ label: "", isGroup: false, lines: [line] });
    }
    if (line.name !== null) graph.lineOf.set(line.name, line);
  }
  graph.launches.forEach((launch, index) => {
    launch.index = index;
    launch.lines.forEach((line) => graph.launchOf.set(line.name, launch));
  });
  return graph;
}

/**
 * By launch after the pass, the launch before it that it goes on from: the one that it shares the most operations with.
 * No launch goes on twice.
 */
function successors(before, after) {
  const shared = [];
  for (const launch of after.launches) {
    const counts = new Map();
    for (const line of launch.lines) {
      const origin = before.launchOf.get(line.name);
      if (origin) counts.set(origin, (counts.get(origin) ?? 0) + 1);
    }
    counts.forEach((count, origin) => shared.push({ origin, launch, count }));
  }
  shared.sort((a, b) => b.count - a.count || a.launch.index - b.launch.index || a.origin.index - b.origin.index);
  const originOf = new Map();
  const taken = new Set();
  for (const { origin, launch } of shared) {
    if (originOf.has(launch) || taken.has(origin)) continue;
    originOf.set(launch, origin);
    taken.add(origin);
  }
  return originOf;
}

/** Sets of launches of both graphs that share operations with no launch outside the set, in the order of the second. */
function families(before, after) {
  const parent = new Map();
  const root = (launch) => {
    let top = launch;
    while (parent.has(top)) top = parent.get(top);
    return top;
  };
  for (const launch of after.launches) {
    for (const line of launch.lines) {
      const origin = before.launchOf.get(line.name);
      if (origin && root(origin) !== root(launch)) parent.set(root(origin), root(launch));
    }
  }
  const byRoot = new Map();
  const family = (launch) => {
    const key = root(launch);
    if (!byRoot.has(key)) byRoot.set(key, { before: [], after: [] });
    return byRoot.get(key);
  };
  after.launches.forEach((launch) => family(launch).after.push(launch));
  const ordered = [...byRoot.values()];
  // What is gone stays where it was: behind what ran before it.
  const behind = new Map();
  let previous = null;
  for (const launch of before.launches) {
    const own = family(launch);
    own.before.push(launch);
    if (own.after.length === 0) {
      if (!behind.has(previous)) behind.set(previous, []);
      behind.get(previous).push(own);
    } else {
      previous = own;
    }
  }
  return [null, ...ordered].flatMap((own) => [...(own ? [own] : []), ...(behind.get(own) ?? [])]);
}

/** Two graphs side by side: rows of blocks of lines, each line with a mark where it differs. */
function compare(before, after) {
  const originOf = successors(before, after);
  const successorOf = new Map([...originOf].map(([launch, origin]) => [origin, launch]));
  const moved = (line) => {
    const [from, to] = [before.launchOf.get(line.name), after.launchOf.get(line.name)];
    if (!from || !to) return false;
    return originOf.get(to) !== from || (from.lines.length === 1 && to.lines.length > 1);
  };
  const marked = (line, other, onlyHere) => {
    const mark = !other || other.text !== line.text ? onlyHere : moved(line) ? "moved" : "";
    return { line, mark, other };
  };
  const block = (launch, graph, onlyHere, counterpart) => {
    const names = (one) => one?.lines.map((line) => line.name).join("\n");
    const lines = launch.lines.map((line) => marked(line, graph.lineOf.get(line.name), onlyHere));
    return { ...launch, lines, changed: names(launch) !== names(counterpart) };
  };
  const row = (kind, left, right) => {
    const blocks = [...left, ...right];
    const changed = blocks.some((one) => one.changed || one.lines.some(({ mark }) => mark !== ""));
    const lines = blocks.flatMap((one) => one.lines.map(({ line }) => line));
    return { kind, before: left, after: right, changed, lines, layers: new Set(lines.map((line) => line.layer)) };
  };
  const single = (line, other, onlyHere) =>
    line ? [{ index: null, isGroup: false, label: "", lines: [marked(line, other, onlyHere)], changed: false }] : [];
  const pair = (kind, left, right) => row(kind, single(left, right, "removed"), single(right, left, "added"));

  const lost = before.leaves.filter((line) => !after.lineOf.has(line.name));
  const gone = lost.map((line) => pair("leaf", line, undefined));
  const leaves = after.leaves.map((line) => pair("leaf", before.lineOf.get(line.name), line));
  const launches = families(before, after).map((family) =>
    row(
      "launch",
      family.before.map((launch) => block(launch, after, "removed", successorOf.get(launch))),
      family.after.map((launch) => block(launch, before, "added", originOf.get(launch))),
    ),
  );
  return [...leaves, ...gone, ...launches, pair("return", before.results[0], after.results[0])];
}

/** The steps that can be chosen: every pass, and all of them together. */
function stepsOf(data) {
  const lines = data.lines.map(lineOf);
  const graphs = new Map();
  const graph = (text) => {
    if (!graphs.has(text)) graphs.set(text, graphOf(text.map((place) => lines[place])));
    return graphs.get(text);
  };
  const comparison = (before, after) => {
    let rows = null;
    return () => (rows ??= compare(graph(before.text), graph(after.text)));
  };
  const ids = new Map();
  const idOf = (name) => {
    ids.set(name, (ids.get(name) ?? 0) + 1);
    return ids.get(name) === 1 ? name : `${name}-${ids.get(name)}`;
  };
  const first = data.as_built;
  let last = first;
  idOf("all");
  const steps = data.stages.map((stage) => {
    const before = last;
    last = { ops: stage.ops, launches: stage.launches, text: stage.text ?? before.text };
    const changed = stage.text !== null;
    return { ...stage, id: idOf(stage.name), changed, before, after: last, rows: comparison(before, last) };
  });
  const all = {
    id: "all",
    name: "all passes",
    description: "the graph as the model builder wrote it, and as it runs",
    changed: last.text !== first.text,
    before: first,
    after: last,
    rows: comparison(first, last),
  };
  // A layer that only weights and states are named after has no launches to choose.
  const operations = lines.filter((line) => line.keyword === "" && line.layer !== null);
  const layers = [...new Set(operations.map((line) => line.layer))];
  return { steps, all, layers: layers.sort((a, b) => a - b) };
}
