// The timeline: one SVG, drawn anew for what is in view. Glyphs of a kind that would lie upon each other are drawn as
// one, so that five thousand records are as quick as fifty.

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
const LANE = { client: [30, 24], broker: [30, 18], worker: [24, 22], store: [44, 18] };
const AXIS = 44;
const JOIN = 3;
const THREADS_MAX = 12;

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

function makeTimeline(box, overview, run, told) {
  const scale = makeScale(run.records.map((record) => record.t), run.end);
  const glyphs = run.records.map(glyphOf);
  const positions = run.records.map((record) => scale.toU(record.t));
  const lanes = placeLanes(run.lanes, new Set(run.records.filter((record) => record.kind === "fault").map((record) => record.lane)));
  const height = lanes[lanes.length - 1].bottom + 6;
  const store = run.lanes.findIndex((lane) => lane.kind === "store");
  const pad = scale.length * 0.008;
  const whole = { u0: -pad, u1: scale.length + pad };
  const state = { view: { ...whole }, matches: null, hidden: new Set(), pinned: -1, hovered: -1, threads: [] };
  let width = 0, left = 0, drawn = [], queued = false, moving = 0;

  const chart = element("svg", { class: "chart", height });
  const clip = element("clipPath", { id: "plot" });
  const clipBox = element("rect", { y: 0, height });
  clip.append(clipBox);
  const defs = element("defs", {});
  defs.append(clip, arrow(), hatch());
  const parts = {};
  chart.append(defs);
  for (const name of ["back", "plot", "front"]) {
    parts[name] = element("g", name === "plot" ? { "clip-path": "url(#plot)" } : {});
    chart.append(parts[name]);
  }
  box.append(chart);

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

  const right = () => width - 14;
  const x = (u) => left + ((u - state.view.u0) / (state.view.u1 - state.view.u0)) * (right() - left);
  const u = (px) => state.view.u0 + ((px - left) / (right() - left)) * (state.view.u1 - state.view.u0);
  const y = (lane, track) => lanes[lane].top + lanes[lane].first + track * lanes[lane].step;
  const inView = (at) => at > left - 12 && at < width + 12;

  function draw() {
    queued = false;
    width = box.clientWidth;
    left = width < 720 ? 84 : 118;
    chart.setAttribute("width", width);
    clipBox.setAttribute("x", left);
    clipBox.setAttribute("width", Math.max(0, width - left));
    drawn = [];
    const back = [], plot = [], front = [];
    drawLanes(back, front);
    drawAxis(back, front);
    drawBars(plot);
    drawTurns(plot);
    drawThreads(plot);
    drawGlyphs(plot);
    drawRing(plot);
    parts.back.replaceChildren(...back);
    parts.plot.replaceChildren(...plot);
    parts.front.replaceChildren(...front);
    drawOverview();
  }

  function redraw() {
    if (!queued) {
      queued = true;
      requestAnimationFrame(draw);
    }
  }

  function drawLanes(back, front) {
    lanes.forEach((lane, n) => {
      const told = run.lanes[n];
      back.push(element("rect", {
        class: `lane ${told.kind}`, "data-lane": told.name, x: 0, y: lane.top, width, height: lane.bottom - lane.top,
      }));
      front.push(element("text", { class: "name", x: 10, y: lane.top + 20 }, told.name));
      const under = told.kind === "worker" ? told.ending || "still running" : "";
      if (under && lane.bottom - lane.top > 36) {
        const short = width < 720 ? under.replace("killed by ", "").replace("exit code", "exit") : under;
        front.push(element("text", { class: `ending${told.clean ? "" : " bad"}`, x: 10, y: lane.top + 35 }, short));
      }
    });
  }

  function drawAxis(back, front) {
    let free = left - 24;
    // Times that are not round are told as exactly as a few pixels show.
    const fine = ((state.view.u1 - state.view.u0) / (right() - left)) * 12;
    const label = (px, text) => {
      if (px < free || px + text.length * 3.5 > width) return;
      front.push(element("text", { class: "tick", x: px, y: 30 }, text));
      free = px + Math.max(52, text.length * 7 + 14);
    };
    for (const run of runsOf(scale.pieces)) {
      const a = x(run.u0), b = x(run.u1), from = Math.max(a, left), to = Math.min(b, right());
      if (b < left || a > right()) continue;
      if (run.idle) {
        // A wait that is much longer than it is drawn is shown in the lanes as well.
        if (run.to - run.from > 12 * (run.u1 - run.u0)) {
          back.push(element("rect", { class: "idle", x: from, y: AXIS - 8, width: Math.max(0, to - from), height: height - AXIS }));
        }
        front.push(element("path", { class: "zigzag", d: zigzag(from, to, AXIS - 8) }));
        const text = durationText(run.to - run.from), centre = (a + b) / 2;
        if (b - a > text.length * 5.4 + 3 && centre > left && centre < right()) {
          front.push(element("text", { class: "skipped", x: centre, y: 13 }, text));
        }
        continue;
      }
      front.push(element("path", { class: "base", d: `M${from} ${AXIS - 8}H${to}` }));
      const at = (px) => run.from + ((px - a) / (b - a)) * (run.to - run.from);
      const ticks = ticksOf(at(from), at(to), to - from, 64);
      for (const tick of ticks) {
        const px = x(scale.toU(tick.t));
        back.push(element("path", { class: "grid", d: `M${px} ${AXIS - 8}V${height}` }));
        label(px, tickText(tick.t, tick.step));
      }
      // Where no round time has room, the time at which the stretch begins says where one is.
      if (!ticks.length && a >= left && a > free + 30) label(a, tickText(run.from, fine));
    }
  }

  function zigzag(from, to, at) {
    if (to - from < 6) return `M${from} ${at}H${to}`;
    let path = `M${from} ${at}`;
    const steps = Math.max(1, Math.round((to - from) / 4));
    for (let i = 1; i <= steps; i++) {
      path += `L${from + ((to - from) * i) / steps} ${at + (i === steps ? 0 : i % 2 ? -2.5 : 2.5)}`;
    }
    return path;
  }

  function drawBars(plot) {
    run.lanes.forEach((lane, n) => {
      const a = x(scale.toU(lane.begin)), b = x(scale.toU(lane.end)), at = lanes[n];
      if (lane.kind === "worker") {
        plot.push(element("rect", {
          class: `life${lane.clean ? "" : " bad"}`, "data-lane": lane.name, x: a, width: Math.max(1.5, b - a),
          y: at.top + 4, height: at.bottom - at.top - 8, rx: 5,
        }));
      } else {
        plot.push(element("path", { class: "rail", d: `M${a} ${y(n, 0)}H${b}` }));
      }
      for (const span of lane.spans) {
        const from = x(scale.toU(span.from)), to = x(scale.toU(span.to));
        plot.push(element("rect", {
          class: `span ${span.what}`, "data-span": span.what, x: from, width: Math.max(2, to - from),
          y: at.top + 4, height: at.bottom - at.top - 8,
        }));
        if (to - from > 44 && span.named) plot.push(element("text", { class: "spanned", x: from + 5, y: at.bottom - 8 }, span.what));
      }
    });
  }

  function drawTurns(plot) {
    if (state.hidden.has("points")) return;
    for (const turn of run.turns) {
      const a = x(scale.toU(turn.from)), b = x(scale.toU(turn.to));
      if (b < left - 5 || a > width + 5) continue;
      const dim = state.matches && !(turn.group >= 0 && state.groups[turn.group]);
      plot.push(element("rect", {
        class: `turn${turn.cut ? " cut" : ""}${dim ? " dim" : ""}`, x: a - 3, width: Math.max(3, b - a + 6),
        y: y(turn.lane, turn.track) - 6.5, height: 13, rx: 6.5,
      }));
    }
  }

  function matched(i) {
    return !state.matches || state.matches[i] || WORLD.has(glyphs[i]);
  }

  function drawGlyphs(plot) {
    const open = new Map(), faults = [], dims = [], clear = [];
    run.records.forEach((record, i) => {
      const glyph = glyphs[i];
      if (state.hidden.has(KIND_OF.get(glyph))) return;
      const at = x(positions[i]);
      if (!inView(at)) return;
      place(record.lane, record.track, at, glyph, i);
      if (glyph === "commit" && store >= 0) place(store, 0, at, glyph, i);
    });

    function place(lane, track, at, glyph, i) {
      const ok = matched(i), key = `${lane} ${track} ${glyph} ${ok}`, last = open.get(key);
      if (glyph !== "fault" && last && at - last.x < JOIN) {
        last.members.push(i);
        return;
      }
      const item = { x: at, y: y(lane, track), glyph, members: [i], ok };
      open.set(key, item);
      (glyph === "fault" ? faults : ok ? clear : dims).push(item);
    }

    const depth = (item) => (item.glyph === "point" ? 0 : 1);
    clear.sort((a, b) => depth(a) - depth(b));
    for (const item of [...dims, ...clear, ...faults]) {
      const record = run.records[item.members[0]];
      const classes = ["glyph", item.glyph, item.ok ? "" : "dim", record.bad ? "bad" : "", item.members.length > 1 ? "many" : ""];
      if (item.glyph === "fault") drawFault(plot, item, record);
      plot.push(element("path", {
        class: classes.filter(Boolean).join(" "), d: GLYPHS[item.glyph], transform: `translate(${item.x.toFixed(2)} ${item.y})`,
        "data-at": item.members[0], "data-kind": record.kind,
      }));
      if (item.glyph === "image") {
        plot.push(element("text", { class: "numbered", x: item.x, y: item.y + 4 }, String(record.fields.number)));
      }
      if (item.ok) drawn.push(item);
    }
  }

  function drawFault(plot, item, record) {
    const lane = lanes[record.lane];
    plot.push(element("path", { class: "stem", d: `M${item.x} ${AXIS - 4}V${height}` }));
    const rule = shown(record.fields.rule, 200), text = rule.slice(rule.indexOf(":") + 1);
    const flip = item.x + text.length * 6.4 + 14 > width;
    plot.push(element("text", {
      class: `rule${flip ? " flip" : ""}`, x: item.x + (flip ? -10 : 10), y: lane.bottom - 8,
    }, text.length > 44 ? `${text.slice(0, 43)}…` : text));
  }

  function drawThreads(plot) {
    for (const command of state.threads.slice(0, THREADS_MAX)) {
      const stops = [];
      for (const i of told.recordsOf(command)) {
        const glyph = glyphs[i];
        if (!["send", "call", "commit", "heard"].includes(glyph) || state.hidden.has(KIND_OF.get(glyph))) continue;
        const lane = glyph === "commit" && store >= 0 ? store : run.records[i].lane;
        const track = glyph === "commit" && store >= 0 ? 0 : run.records[i].track;
        stops.push({ x: x(positions[i]), y: y(lane, track), begins: glyph === "send" });
      }
      for (let i = 1; i < stops.length; i++) {
        const a = stops[i - 1], b = stops[i];
        // Nothing leads to a sending: it begins anew.
        if (b.begins || (a.x < left && b.x < left) || (a.x > width && b.x > width)) continue;
        plot.push(element("path", { class: "thread", d: curve(a, b), "marker-end": "url(#arrow)" }));
      }
    }
  }

  function curve(a, b) {
    const gap = 6 * Math.sign(b.y - a.y);
    if (!gap) return `M${a.x + 6} ${a.y}H${b.x - 6}`;
    const bend = Math.min(60, Math.max(14, (b.x - a.x) / 2));
    return `M${a.x} ${a.y + gap}C${a.x + bend / 3} ${a.y + (b.y - a.y) * 0.55} ${b.x - bend} ${b.y - (b.y - a.y) * 0.2} ${b.x - 3} ${b.y - gap}`;
  }

  function drawRing(plot) {
    for (const [i, name] of [[state.hovered, "hovered"], [state.pinned, "pinned"]]) {
      if (i < 0) continue;
      const record = run.records[i];
      plot.push(element("circle", { class: `ring ${name}`, cx: x(positions[i]), cy: y(record.lane, record.track), r: 9.5 }));
    }
  }

  function drawOverview() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ratio = window.devicePixelRatio || 1, w = overview.clientWidth, h = 30;
    overview.width = Math.max(1, Math.round(w * ratio));
    overview.height = Math.round(h * ratio);
    const pen = overview.getContext("2d");
    pen.scale(ratio, ratio);
    const at = (position) => left + ((position - whole.u0) / (whole.u1 - whole.u0)) * (w - 14 - left);
    const columns = new Map();
    positions.forEach((position, i) => {
      const column = `${Math.round(at(position) / 2) * 2} ${matched(i) ? 1 : 0}`;
      columns.set(column, (columns.get(column) || 0) + 1);
    });
    for (const [column, count] of columns) {
      const [px, ok] = column.split(" ").map(Number);
      const size = Math.min(20, 3 + Math.log2(1 + count) * 4);
      pen.fillStyle = colour(ok ? "--soft" : "--line");
      pen.fillRect(px, h - 5 - size, 1.5, size);
    }
    run.records.forEach((record, i) => {
      if (record.kind !== "fault") return;
      pen.fillStyle = colour("--fault");
      pen.fillRect(at(positions[i]) - 1, 1, 2, h - 3);
    });
    if (state.view.u1 - state.view.u0 > (whole.u1 - whole.u0) * 0.999) return;
    const a = at(state.view.u0), b = at(state.view.u1);
    pen.fillStyle = colour("--veil");
    pen.fillRect(left, 0, Math.max(0, a - left), h);
    pen.fillRect(b, 0, Math.max(0, w - b), h);
    pen.strokeStyle = colour("--soft");
    pen.lineWidth = 1;
    pen.strokeRect(Math.max(left, a) + 0.5, 0.5, Math.max(4, Math.min(w, b) - Math.max(left, a)) - 1, h - 1);
  }

  // -- moving about --------------------------------------------------------------------------------------------------

  function show(u0, u1) {
    const least = scale.length / 20000 || 1e-6;
    let span = Math.min(whole.u1 - whole.u0, Math.max(least, u1 - u0));
    let from = Math.min(Math.max(u0, whole.u0), whole.u1 - span);
    state.view = { u0: from, u1: from + span };
    redraw();
  }

  function glide(u0, u1) {
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) return show(u0, u1);
    const from = { ...state.view }, start = performance.now(), mine = ++moving;
    const step = (now) => {
      if (mine !== moving) return;
      const part = Math.min(1, Math.max(0, (now - start) / 180)), eased = 1 - (1 - part) ** 3;
      show(from.u0 + (u0 - from.u0) * eased, from.u1 + (u1 - from.u1) * eased);
      if (part < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  function zoom(factor, at, smooth) {
    const { u0, u1 } = state.view;
    const pinned = state.pinned >= 0 ? positions[state.pinned] : -1;
    const centre = at ?? (pinned > u0 && pinned < u1 ? pinned : (u0 + u1) / 2);
    const target = [centre - (centre - u0) * factor, centre + (u1 - centre) * factor];
    if (smooth) glide(...target);
    else show(...target);
  }

  function reveal(i) {
    const { u0, u1 } = state.view, at = positions[i], margin = (u1 - u0) * 0.06;
    if (at < u0 + margin || at > u1 - margin) glide(at - (u1 - u0) / 2, at + (u1 - u0) / 2);
    else redraw();
  }

  // What lies under the mouse, the nearest first; of what lies upon each other, that drawn last, which is seen.
  function under(px, py) {
    const near = drawn
      .map((item, order) => ({ item, order, away: Math.hypot(item.x - px, item.y - py) }))
      .filter((found) => found.away <= 11)
      .sort((a, b) => a.away - b.away || b.order - a.order);
    const touching = near.filter((found) => found.away <= near[0].away + 5);
    return [...new Set(touching.flatMap((found) => found.item.members))];
  }

  function pointAt(event) {
    const edges = chart.getBoundingClientRect();
    return [event.clientX - edges.left, event.clientY - edges.top];
  }

  let drag = null;
  chart.addEventListener("pointerdown", (event) => {
    if (event.button === 0) drag = { px: pointAt(event)[0], view: { ...state.view }, moved: false };
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const away = pointAt(event)[0] - drag.px;
    if (Math.abs(away) > 4 && !drag.moved) {
      drag.moved = true;
      told.leave();
      box.classList.add("dragging");
    }
    if (!drag.moved) return;
    moving++;
    const by = (away / (right() - left)) * (drag.view.u1 - drag.view.u0);
    show(drag.view.u0 - by, drag.view.u1 - by);
  });
  window.addEventListener("pointerup", (event) => {
    const was = drag;
    drag = null;
    box.classList.remove("dragging");
    if (!was || was.moved || !chart.contains(event.target)) return;
    told.pin(under(...pointAt(event))[0] ?? -1);
  });
  window.addEventListener("pointercancel", () => { drag = null; });
  chart.addEventListener("pointermove", (event) => {
    if (drag && drag.moved) return;
    const found = under(...pointAt(event));
    box.classList.toggle("over", found.length > 0);
    if (found.length) told.hover(found, event.clientX, event.clientY);
    else told.leave();
  });
  chart.addEventListener("pointerleave", () => told.leave());
  chart.addEventListener("dblclick", (event) => zoom(0.35, u(pointAt(event)[0]), true));
  chart.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      moving++;
      zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.008), u(pointAt(event)[0]), false);
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = ((event.deltaX || event.deltaY) / (right() - left)) * (state.view.u1 - state.view.u0);
      show(state.view.u0 + by, state.view.u1 + by);
    }
  }, { passive: false });
  let scrub = false;
  const scrubTo = (event) => {
    const edges = overview.getBoundingClientRect();
    const part = (event.clientX - edges.left - left) / (edges.width - 14 - left);
    const at = whole.u0 + part * (whole.u1 - whole.u0), half = (state.view.u1 - state.view.u0) / 2;
    show(at - half, at + half);
  };
  overview.addEventListener("pointerdown", (event) => {
    scrub = true;
    overview.setPointerCapture(event.pointerId);
    scrubTo(event);
  });
  overview.addEventListener("pointermove", (event) => { if (scrub) scrubTo(event); });
  overview.addEventListener("pointerup", () => { scrub = false; });
  new ResizeObserver(redraw).observe(box);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    glyphs,
    draw,
    reveal,
    zoom: (factor) => zoom(factor, undefined, true),
    all: () => glide(whole.u0, whole.u1),
    pan: (part) => glide(state.view.u0 + part * (state.view.u1 - state.view.u0), state.view.u1 + part * (state.view.u1 - state.view.u0)),
    set(changes) {
      Object.assign(state, changes);
      redraw();
    },
  };
}

// Waits that follow each other are drawn as one.
function runsOf(pieces) {
  const runs = [];
  for (const piece of pieces) {
    const last = runs[runs.length - 1];
    if (last && last.idle && piece.idle) Object.assign(last, { to: piece.to, u1: piece.u1 });
    else runs.push({ ...piece });
  }
  return runs;
}

// Below a lane with faults there is room for their rules.
function placeLanes(lanes, faulty) {
  let top = AXIS;
  return lanes.map((lane, n) => {
    const [base, step] = LANE[lane.kind];
    const least = lane.kind === "worker" ? 46 : base;
    const tall = Math.max(least, base + (lane.tracks - 1) * step + (lane.kind === "worker" || faulty.has(n) ? 20 : 4));
    const placed = { top, bottom: top + tall, first: base / 2 + 2, step };
    top += tall + 4;
    return placed;
  });
}
