// The page around the timeline: filter, kinds, details, badges, keys. What is typed or clicked is kept in the address.

window.addEventListener("error", (event) => {
  document.documentElement.dataset.error = String(event.message);
});
window.addEventListener("unhandledrejection", (event) => {
  document.documentElement.dataset.error = String(event.reason);
});

const NOTHING_PINNED = document.querySelector("#detail p").textContent;
const run = JSON.parse(document.getElementById("run").textContent);
const byId = (id) => document.getElementById(id);
const filter = byId("filter"), tip = byId("tip"), detail = byId("detail");

const recordsOfCommand = run.commands.map(() => []);
run.records.forEach((record, i) => {
  if (record.group >= 0) for (const command of run.groups[record.group].own) recordsOfCommand[command].push(i);
});
const focused = run.focus
  .map(([scope, key]) => run.commands.findIndex((command) => command.scope === scope && command.key === key))
  .filter((command) => command >= 0);

const state = { text: "", scope: "", commands: null, hidden: new Set(), pinned: -1 };
const timeline = makeTimeline(byId("timeline"), byId("overview"), run, {
  recordsOf: (command) => recordsOfCommand[command],
  hover: showTip,
  leave: hideTip,
  pin,
});

// Characters that cannot be seen, or that turn the direction of the text around them, are shown as escapes.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

function shown(text, most = 64) {
  const all = Array.from(String(text).replace(UNSEEN, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`));
  return all.length > most ? `${all.slice(0, most - 9).join("")}…${all.slice(-8).join("")}` : all.join("");
}

function html(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// -- filter ----------------------------------------------------------------------------------------------------------

// Commands whose key or id is the text; where none is, those that contain it.
function commandsFor(text, scope) {
  const all = run.commands.map((command, i) => ({ ...command, i })).filter((c) => !scope || c.scope === scope);
  const exact = all.filter((c) => c.key === text || c.ids.includes(text));
  if (exact.length || scope) return { exact: true, found: new Set(exact.map((c) => c.i)) };
  const small = text.toLowerCase();
  const near = all.filter((c) => [c.key, ...c.ids].some((name) => name.toLowerCase().includes(small)));
  return { exact: false, found: new Set(near.map((c) => c.i)) };
}

function applyFilter() {
  const text = state.text;
  let matches = null, groups = null, count = 0;
  state.commands = null;
  if (text) {
    const { exact, found } = commandsFor(text, state.scope);
    const small = text.toLowerCase();
    state.commands = found;
    groups = run.groups.map((group) => group.own.some((c) => found.has(c)) || group.derived.some((c) => found.has(c)));
    matches = run.records.map((record) => {
      const hit = (record.group >= 0 && groups[record.group]) || (!exact && record.what.toLowerCase().includes(small));
      count += hit;
      return hit;
    });
  }
  filter.classList.toggle("active", Boolean(text));
  const where = state.scope ? ` in ${shown(state.scope, 40)}` : "";
  byId("matches").textContent = text ? `${count || "no"} record${count === 1 ? "" : "s"}${where}` : "";
  timeline.set({ matches, groups, threads: threads() });
  for (const row of document.querySelectorAll("#rows tbody tr")) {
    row.hidden = Boolean(text) && !state.commands.has(commandOf(row));
  }
  for (const line of document.querySelectorAll("#story button")) {
    const at = Number(line.dataset.at);
    line.classList.toggle("dim", Boolean(matches) && !matches[at] && !WORLD.has(timeline.glyphs[at]));
  }
}

// The command that an element of the page names, which it does in JSON: no key is bent by the parser of attributes.
function commandOf(named) {
  const [scope, key] = JSON.parse(named.dataset.name);
  return run.commands.findIndex((command) => command.scope === scope && command.key === key);
}

// Whose records are joined by lines: the filtered ones, else those of what is pinned, else those of the findings.
function threads() {
  if (state.commands) return state.commands.size <= 12 ? [...state.commands] : [];
  const record = run.records[state.pinned];
  if (record && record.group >= 0 && run.groups[record.group].own.length <= 3) return run.groups[record.group].own;
  return focused.length <= 3 ? focused : [];
}

function setFilter(text, scope = "") {
  state.text = text;
  state.scope = scope;
  if (filter.value !== text) filter.value = text;
  writeHash();
  applyFilter();
}

function writeHash() {
  const fields = new URLSearchParams();
  if (state.text) fields.set("key", state.text);
  if (state.scope) fields.set("scope", state.scope);
  if (state.hidden.size) fields.set("hide", [...state.hidden].join(","));
  const hash = fields.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function readHash() {
  const fields = new URLSearchParams(location.hash.slice(1));
  state.hidden = new Set((fields.get("hide") || "").split(",").filter((id) => KINDS.some((kind) => kind.id === id)));
  state.text = fields.get("key") || "";
  state.scope = fields.get("scope") || "";
  filter.value = state.text;
  showKinds();
  applyFilter();
}

// -- kinds -----------------------------------------------------------------------------------------------------------

function buildKinds() {
  for (const kind of KINDS) {
    const count = timeline.glyphs.filter((glyph) => kind.glyphs.includes(glyph)).length;
    if (!count) continue;
    const icon = element("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" });
    icon.append(element("path", { class: `glyph ${kind.glyphs[0]}`, d: GLYPHS[kind.glyphs[0]] }));
    const number = html("small", {}, String(count));
    const button = html("button", { type: "button", id: `kind-${kind.id}` }, icon, kind.name, number);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(kind.id)) state.hidden.add(kind.id);
      writeHash();
      showKinds();
    });
    byId("kinds").append(button);
  }
}

function showKinds() {
  for (const kind of KINDS) {
    const button = byId(`kind-${kind.id}`);
    if (button) button.setAttribute("aria-pressed", String(!state.hidden.has(kind.id)));
  }
  timeline.set({ hidden: state.hidden });
}

// -- hovering and pinning --------------------------------------------------------------------------------------------

function showTip(members, px, py) {
  const lines = members.slice(0, 5).map((i) => {
    const record = run.records[i];
    const [time, actor] = [html("time", {}, record.t.toFixed(3)), html("b", {}, shown(record.actor, 24))];
    return html("p", {}, time, actor, html("span", {}, shown(record.what, 160)));
  });
  if (members.length > 5) lines.push(html("p", { className: "quiet" }, `and ${members.length - 5} more here: zoom in`));
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const edges = tip.getBoundingClientRect();
  const flip = px + 16 + edges.width > window.innerWidth - 8;
  tip.style.left = `${Math.max(8, flip ? px - 16 - edges.width : px + 16)}px`;
  tip.style.top = `${Math.max(8, Math.min(py + 14, window.innerHeight - edges.height - 8))}px`;
  timeline.set({ hovered: members[0] });
}

function hideTip() {
  if (tip.hidden) return;
  tip.hidden = true;
  timeline.set({ hovered: -1 });
}

function pin(i) {
  state.pinned = i;
  timeline.set({ pinned: i, threads: threads() });
  for (const line of document.querySelectorAll("#story button")) {
    line.setAttribute("aria-current", String(Number(line.dataset.at) === i));
  }
  if (i < 0) {
    detail.replaceChildren(html("p", { className: "quiet" }, NOTHING_PINNED));
    return;
  }
  timeline.reveal(i);
  detail.replaceChildren(...described(i));
}

function described(i) {
  const record = run.records[i];
  const group = record.group >= 0 ? run.groups[record.group] : { own: [], derived: [] };
  const parts = [
    html("p", { className: `title ${record.kind}${record.bad ? " bad" : ""}` }, shown(record.what, 400)),
    html("p", { className: "when" }, `${record.t.toFixed(3)} ms · ${shown(record.actor, 40)} · ${record.kind}`),
  ];
  const keys = [...group.own, ...group.derived];
  if (keys.length) {
    const list = html("p", { className: "about" });
    for (const command of keys.slice(0, 12)) list.append(keyButton(run.commands[command]), " ");
    if (keys.length > 12) list.append(`and ${keys.length - 12} more`);
    if (!group.own.length) list.append(html("span", { className: "quiet" }, "where it goes back to"));
    parts.push(list);
  }
  const table = html("dl", { className: "fields" });
  for (const [name, value] of Object.entries(record.fields)) {
    table.append(html("div", {}, html("dt", {}, name), html("dd", {}, fieldOf(name, value))));
  }
  parts.push(table, steps(i, group.own));
  return parts;
}

function fieldOf(name, value) {
  if (name === "body" && typeof value === "string") {
    try {
      const lines = JSON.stringify(JSON.parse(value), null, 2).split("\n");
      return html("pre", {}, lines.map((line) => shown(line, 2000)).join("\n"));
    } catch {
      return html("pre", {}, shown(value, 4000));
    }
  }
  return html("code", {}, value === null ? "null" : shown(value, 4000));
}

function keyButton(command) {
  const button = html("button", { type: "button", className: "key", title: "Show only this command" });
  button.append(html("bdi", {}, shown(command.key, 40)));
  button.dataset.name = JSON.stringify([command.scope, command.key]);
  return button;
}

// The records before and after this one: of its command, or of anything where it concerns none.
function steps(i, own) {
  const among = own.length === 1 ? recordsOfCommand[own[0]] : null;
  const find = (by) => {
    if (!among) return run.records[i + by] ? i + by : -1;
    const at = among.indexOf(i);
    return among[at + by] ?? -1;
  };
  const nav = html("div", { className: "steps" });
  for (const [by, text] of [[-1, "‹ before"], [1, "after ›"]]) {
    const to = find(by);
    const button = html("button", { type: "button", disabled: to < 0 }, text);
    button.addEventListener("click", () => {
      pin(to);
      detail.querySelectorAll(".steps button")[by < 0 ? 0 : 1].focus();
    });
    nav.append(button);
  }
  nav.append(html("span", { className: "quiet" }, among ? "of this command" : "of everything"));
  return nav;
}

// -- everything else -------------------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const key = event.target.closest("button.key");
  if (key) {
    const [scope, text] = JSON.parse(key.dataset.name);
    const same = state.text === text && state.scope === scope;
    setFilter(same ? "" : text, same ? "" : scope);
  }
  const line = event.target.closest("#story button");
  if (line) pin(Number(line.dataset.at));
  const badge = event.target.closest("button.badge");
  if (badge) toggleBadge(badge);
});

function toggleBadge(badge) {
  const open = badge.getAttribute("aria-expanded") !== "true";
  for (const other of document.querySelectorAll("button.badge")) {
    const mine = open && other === badge;
    other.setAttribute("aria-expanded", String(mine));
    byId(other.getAttribute("aria-controls")).hidden = !mine;
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea");
  if (event.key === "Escape") {
    hideTip();
    setFilter("");
    pin(-1);
    filter.blur();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const does = {
    "/": () => { filter.focus(); filter.select(); },
    "+": () => timeline.zoom(0.5),
    "=": () => timeline.zoom(0.5),
    "-": () => timeline.zoom(2),
    0: () => timeline.all(),
  };
  if (event.target === byId("timeline")) {
    does.ArrowLeft = () => timeline.pan(-0.2);
    does.ArrowRight = () => timeline.pan(0.2);
  }
  if (does[event.key]) {
    event.preventDefault();
    does[event.key]();
  }
});

filter.addEventListener("input", () => setFilter(filter.value));
byId("zoom-in").addEventListener("click", () => timeline.zoom(0.5));
byId("zoom-out").addEventListener("click", () => timeline.zoom(2));
byId("zoom-all").addEventListener("click", () => timeline.all());
window.addEventListener("hashchange", readHash);
const copy = byId("copy");
if (copy) {
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("replay").textContent);
      copy.textContent = "Copied";
    } catch {
      // Without leave to write to the clipboard the text is selected, to be copied by hand.
      getSelection().selectAllChildren(byId("replay"));
      copy.textContent = "Selected";
    }
  });
}

buildKinds();
readHash();
timeline.draw();
document.documentElement.dataset.ready = "true";
