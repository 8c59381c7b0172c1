// What is drawn of a record, which kinds can be hidden, and the few shapes beside.

const SVG = "http://www.w3.org/2000/svg";

// Drawn around 0,0. Kinds differ in shape as well as in colour.
const GLYPHS = {
  send: "M-3.5-5L5.5 0L-3.5 5Z",
  ok: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0Z",
  doubt: "M0-5L5 0L0 5L-5 0ZM0-2.2V.8M0 2.2v.2",
  heard: "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0Z",
  call: "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
  decided: "M0-3.6L3.6 0L0 3.6L-3.6 0Z",
  point: "M-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0Z",
  commit: "M-3.8-3.8H3.8V3.8H-3.8Z",
  frame: "M0-5.5V5.5",
  fault: "M-6-6L6 6M6-6L-6 6",
  healed: "M-5 0H5M0-5V5",
  down: "M-5.5-4H5.5L0 5Z",
  up: "M-5.5 4H5.5L0-5Z",
  spawn: "M-1.5-6H1.5V6H-1.5Z",
  exit: "M-1.5-6H1.5V6H-1.5Z",
  listening: "M2.5-5H-1.5V5H2.5",
  deaf: "M-2.5-5H1.5V5H-2.5",
  image: "M-6-5.5H3L6-2.5V5.5H-6ZM3-5.5V-2.5H6",
  drained: "M-5 0L-1.5 3.8L5-4",
};

const KINDS = [
  { id: "sends", name: "sends and answers", glyphs: ["send", "ok", "doubt"] },
  { id: "calls", name: "handler calls", glyphs: ["call", "decided"] },
  { id: "points", name: "points", glyphs: ["point"] },
  { id: "commits", name: "commits", glyphs: ["commit"] },
  { id: "events", name: "events heard", glyphs: ["heard", "listening", "deaf"] },
  { id: "frames", name: "frames", glyphs: ["frame"] },
  { id: "faults", name: "faults", glyphs: ["fault", "healed", "down", "up"] },
  { id: "images", name: "images", glyphs: ["image", "drained"] },
];
const KIND_OF = new Map(KINDS.flatMap((kind) => kind.glyphs.map((glyph) => [glyph, kind.id])));
// These are there whatever the filter says: without them nothing can be understood.
const WORLD = new Set(["fault", "healed", "down", "up", "spawn", "exit", "image", "drained", "listening", "deaf"]);

function glyphOf(record) {
  if (record.kind === "point") return record.commit ? "commit" : "point";
  if (record.kind === "unknown" || record.kind === "failed") return "doubt";
  return record.kind;
}

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

function arrow() {
  const made = element("marker", {
    id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto",
  });
  made.append(element("path", { d: "M0 .8L8 4L0 7.2Z", class: "head" }));
  return made;
}

function hatch() {
  const made = element("pattern", {
    id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
  });
  made.append(element("path", { d: "M0 0V6", class: "hatch" }));
  return made;
}

function zigzag(from, to, y) {
  if (to - from < 6) return `M${from} ${y}H${to}`;
  let path = `M${from} ${y}`;
  const steps = Math.max(1, Math.round((to - from) / 4));
  for (let i = 1; i <= steps; i++) {
    path += `L${from + ((to - from) * i) / steps} ${y + (i === steps ? 0 : i % 2 ? -2.5 : 2.5)}`;
  }
  return path;
}

// From one glyph to another, with room for both.
function curve(a, b) {
  const gap = 6 * Math.sign(b.y - a.y);
  if (!gap) return `M${a.x + 6} ${a.y}H${b.x - 6}`;
  const bend = Math.min(60, Math.max(14, (b.x - a.x) / 2)), tall = b.y - a.y;
  const first = `${a.x + bend / 3} ${a.y + tall * 0.55}`, second = `${b.x - bend} ${b.y - tall * 0.2}`;
  return `M${a.x} ${a.y + gap}C${first} ${second} ${b.x - 3} ${b.y - gap}`;
}
