// The drawing of the timeline: one SVG, made anew for what is in view. Glyphs of a kind that would lie upon each other
// are drawn as one, so that five thousand records are as quick as fifty.

// Of each kind of lane, what its first track takes and every further one, in pixels.
const LANE = { client: [30, 24], broker: [30, 18], worker: [24, 22], store: [44, 18] };
const AXIS = 44;
const RIGHT = 14;
const JOIN = 3;
const THREADS_MAX = 12;
const STOPS = new Set(["send", "call", "commit", "heard"]);

class Drawing {
  // `recordsOf` are the indices of a command's own records.
  constructor(box, overview, run, recordsOf) {
    Object.assign(this, { box, overview, run, recordsOf });
    this.scale = makeScale(run.records.map((record) => record.t), run.end);
    this.glyphs = run.records.map(glyphOf);
    this.positions = run.records.map((record) => this.scale.toU(record.t));
    this.lanes = placeLanes(run);
    this.height = this.lanes[this.lanes.length - 1].bottom + 6;
    this.store = run.lanes.findIndex((lane) => lane.kind === "store");
    const pad = this.scale.length * 0.008;
    this.whole = { u0: -pad, u1: this.scale.length + pad };
    this.view = { ...this.whole };
    // What the page says is to be seen: see `set` of the timeline.
    this.state = { matches: null, groups: null, hidden: new Set(), pinned: -1, hovered: -1, threads: [] };
    this.width = this.left = 0;
    this.drawn = [];
    this.queued = false;
    this.chart = this.makeChart();
    box.append(this.chart);
  }

  makeChart() {
    const chart = element("svg", { class: "chart", height: this.height });
    const clip = element("clipPath", { id: "plot" }), defs = element("defs", {});
    this.clip = element("rect", { y: 0, height: this.height });
    clip.append(this.clip);
    defs.append(clip, arrow(), hatch());
    chart.append(defs);
    this.layers = {};
    for (const name of ["back", "plot", "front"]) {
      this.layers[name] = element("g", name === "plot" ? { "clip-path": "url(#plot)" } : {});
      chart.append(this.layers[name]);
    }
    return chart;
  }

  get right() {
    return this.width - RIGHT;
  }

  get span() {
    return this.view.u1 - this.view.u0;
  }

  x(u) {
    return this.left + ((u - this.view.u0) / this.span) * (this.right - this.left);
  }

  xOf(t) {
    return this.x(this.scale.toU(t));
  }

  u(px) {
    return this.view.u0 + ((px - this.left) / (this.right - this.left)) * this.span;
  }

  y(lane, track) {
    const { top, first, step } = this.lanes[lane];
    return top + first + track * step;
  }

  isHidden(glyph) {
    return this.state.hidden.has(KIND_OF.get(glyph));
  }

  isMatched(i) {
    return !this.state.matches || this.state.matches[i] || WORLD.has(this.glyphs[i]);
  }

  redraw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.queued = false;
    this.width = this.box.clientWidth;
    this.left = this.width < 720 ? 84 : 118;
    this.chart.setAttribute("width", this.width);
    this.clip.setAttribute("x", this.left);
    this.clip.setAttribute("width", Math.max(0, this.width - this.left));
    const back = [], plot = [], front = [];
    this.drawLanes(back, front);
    this.drawAxis(back, front);
    this.drawLives(plot);
    this.drawTurns(plot);
    this.drawThreads(plot);
    this.drawGlyphs(plot);
    this.drawRings(plot);
    this.layers.back.replaceChildren(...back);
    this.layers.plot.replaceChildren(...plot);
    this.layers.front.replaceChildren(...front);
    this.drawOverview();
  }

  drawLanes(back, front) {
    this.lanes.forEach((lane, n) => {
      const told = this.run.lanes[n];
      back.push(element("rect", {
        class: "lane", "data-lane": told.name, x: 0, y: lane.top, width: this.width, height: lane.bottom - lane.top,
      }));
      front.push(element("text", { class: "name", x: 10, y: lane.top + 20 }, shown(told.name, 24)));
      if (told.kind !== "worker") return;
      const under = told.ending || "still running";
      const short = this.width < 720 ? under.replace("killed by ", "").replace("exit code", "exit") : under;
      front.push(element("text", { class: `ending${told.clean ? "" : " bad"}`, x: 10, y: lane.top + 35 }, short));
    });
  }

  drawAxis(back, front) {
    const y = AXIS - 8;
    // Times that are not round are told as exactly as a few pixels show.
    const fine = (this.span / (this.right - this.left)) * 12;
    let free = this.left - 24;
    const label = (px, text) => {
      if (px < free || px + text.length * 3.5 > this.width) return;
      front.push(element("text", { class: "tick", x: px, y: 30 }, text));
      free = px + Math.max(52, text.length * 7 + 14);
    };
    for (const stretch of stretchesOf(this.scale.pieces)) {
      const a = this.x(stretch.u0), b = this.x(stretch.u1);
      if (b < this.left || a > this.right) continue;
      const from = Math.max(a, this.left), to = Math.min(b, this.right);
      if (stretch.idle) {
        this.drawWait(back, front, stretch, { a, b, from, to, y });
        continue;
      }
      front.push(element("path", { class: "base", d: `M${from} ${y}H${to}` }));
      const at = (px) => stretch.from + ((px - a) / (b - a)) * (stretch.to - stretch.from);
      const ticks = ticksOf(at(from), at(to), to - from, 64);
      for (const tick of ticks) {
        const px = this.xOf(tick.t);
        back.push(element("path", { class: "grid", d: `M${px} ${y}V${this.height}` }));
        label(px, tickText(tick.t, tick.step));
      }
      // Where no round time has room, the time at which the stretch begins says where one is.
      if (!ticks.length && a >= this.left && a > free + 30) label(a, tickText(stretch.from, fine));
    }
  }

  drawWait(back, front, wait, { a, b, from, to, y }) {
    // One that is much longer than it is drawn is shown in the lanes as well.
    if (wait.to - wait.from > 12 * (wait.u1 - wait.u0)) {
      const area = { x: from, y, width: Math.max(0, to - from), height: this.height - AXIS };
      back.push(element("rect", { class: "idle", ...area }));
    }
    front.push(element("path", { class: "zigzag", d: zigzag(from, to, y) }));
    const text = durationText(wait.to - wait.from), centre = (a + b) / 2;
    if (b - a > text.length * 5.4 + 3 && centre > this.left && centre < this.right) {
      front.push(element("text", { class: "skipped", x: centre, y: 13 }, text));
    }
  }

  drawLives(plot) {
    this.run.lanes.forEach((lane, n) => {
      const a = this.xOf(lane.begin), b = this.xOf(lane.end), { top, bottom } = this.lanes[n];
      const tall = { y: top + 4, height: bottom - top - 8 };
      if (lane.kind === "worker") {
        plot.push(element("rect", {
          class: `life${lane.clean ? "" : " bad"}`, "data-lane": lane.name, x: a, width: Math.max(1.5, b - a), rx: 5,
          ...tall,
        }));
      } else {
        plot.push(element("path", { class: "rail", d: `M${a} ${this.y(n, 0)}H${b}` }));
      }
      for (const span of lane.spans) {
        const from = this.xOf(span.from), to = this.xOf(span.to);
        plot.push(element("rect", {
          class: `span ${span.what}`, "data-span": span.what, x: from, width: Math.max(2, to - from), ...tall,
        }));
        if (to - from > 44 && span.named) {
          plot.push(element("text", { class: "spanned", x: from + 5, y: bottom - 8 }, span.what));
        }
      }
    });
  }

  drawTurns(plot) {
    if (this.isHidden("point")) return;
    for (const turn of this.run.turns) {
      const a = this.xOf(turn.from), b = this.xOf(turn.to);
      if (b < this.left - 5 || a > this.width + 5) continue;
      const dim = this.state.matches && !(turn.group >= 0 && this.state.groups[turn.group]);
      plot.push(element("rect", {
        class: `turn${turn.cut ? " cut" : ""}${dim ? " dim" : ""}`, x: a - 3, width: Math.max(3, b - a + 6),
        y: this.y(turn.lane, turn.track) - 6.5, height: 13, rx: 6.5,
      }));
    }
  }

  drawThreads(plot) {
    for (const command of this.state.threads.slice(0, THREADS_MAX)) {
      const stops = this.recordsOf(command)
        .filter((i) => STOPS.has(this.glyphs[i]) && !this.isHidden(this.glyphs[i]))
        .map((i) => {
          const { lane, track } = this.run.records[i], stored = this.glyphs[i] === "commit";
          const y = stored ? this.y(this.store, 0) : this.y(lane, track);
          return { x: this.x(this.positions[i]), y, begins: this.glyphs[i] === "send" };
        });
      for (let i = 1; i < stops.length; i++) {
        const a = stops[i - 1], b = stops[i];
        // Nothing leads to a sending: it begins anew.
        if (b.begins || b.x < this.left || a.x > this.width) continue;
        plot.push(element("path", { class: "thread", d: curve(a, b), "marker-end": "url(#arrow)" }));
      }
    }
  }

  // What is drawn of the records in view: `drawn` are those that answer the mouse.
  drawGlyphs(plot) {
    const open = new Map(), faults = [], dims = [], points = [], others = [];
    const place = (lane, track, x, glyph, i) => {
      const matched = this.isMatched(i), key = `${lane} ${track} ${glyph} ${matched}`, last = open.get(key);
      if (glyph !== "fault" && last && x - last.x < JOIN) {
        last.members.push(i);
        return;
      }
      const item = { x, y: this.y(lane, track), glyph, members: [i], matched };
      open.set(key, item);
      (glyph === "fault" ? faults : !matched ? dims : glyph === "point" ? points : others).push(item);
    };
    this.run.records.forEach((record, i) => {
      const glyph = this.glyphs[i], x = this.x(this.positions[i]);
      if (this.isHidden(glyph) || x < this.left - 12 || x > this.width + 12) return;
      place(record.lane, record.track, x, glyph, i);
      if (glyph === "commit") place(this.store, 0, x, glyph, i);
    });
    const items = [...dims, ...points, ...others, ...faults];
    for (const item of items) this.drawItem(plot, item);
    this.drawn = items.filter((item) => item.matched);
  }

  drawItem(plot, item) {
    const record = this.run.records[item.members[0]];
    const classes = ["glyph", item.glyph];
    if (!item.matched) classes.push("dim");
    if (record.bad) classes.push("bad");
    if (item.members.length > 1) classes.push("many");
    if (item.glyph === "fault") this.drawRule(plot, item.x, record);
    plot.push(element("path", {
      class: classes.join(" "), d: GLYPHS[item.glyph], transform: `translate(${item.x.toFixed(2)} ${item.y})`,
    }));
    if (item.glyph === "image") {
      plot.push(element("text", { class: "numbered", x: item.x, y: item.y + 4 }, shown(record.fields.number, 10)));
    }
  }

  drawRule(plot, x, record) {
    plot.push(element("path", { class: "stem", d: `M${x} ${AXIS - 4}V${this.height}` }));
    const rule = shown(record.fields.rule, 200), text = shown(rule.slice(rule.indexOf(":") + 1), 44);
    const flip = x + text.length * 6.4 + 14 > this.width;
    plot.push(element("text", {
      class: `rule${flip ? " flip" : ""}`, x: x + (flip ? -10 : 10), y: this.lanes[record.lane].bottom - 8,
    }, text));
  }

  drawRings(plot) {
    for (const name of ["hovered", "pinned"]) {
      const i = this.state[name];
      if (i < 0) continue;
      const { lane, track } = this.run.records[i];
      const centre = { cx: this.x(this.positions[i]), cy: this.y(lane, track) };
      plot.push(element("circle", { class: `ring ${name}`, ...centre, r: 9.5 }));
    }
  }

  // Where a position lies in the overview, which shows the whole run whatever is in view.
  overviewX(u) {
    const { u0, u1 } = this.whole;
    return this.left + ((u - u0) / (u1 - u0)) * (this.overview.clientWidth - RIGHT - this.left);
  }

  drawOverview() {
    const style = getComputedStyle(document.documentElement), ratio = window.devicePixelRatio || 1;
    const colour = (name) => style.getPropertyValue(name).trim();
    const width = this.overview.clientWidth, height = this.overview.clientHeight;
    this.overview.width = Math.max(1, Math.round(width * ratio));
    this.overview.height = Math.round(height * ratio);
    const pen = this.overview.getContext("2d");
    pen.scale(ratio, ratio);
    const columns = { "--line": new Map(), "--soft": new Map() };
    this.positions.forEach((position, i) => {
      const px = Math.round(this.overviewX(position) / 2) * 2;
      const counts = columns[this.isMatched(i) ? "--soft" : "--line"];
      counts.set(px, (counts.get(px) || 0) + 1);
    });
    for (const name in columns) {
      pen.fillStyle = colour(name);
      for (const [px, count] of columns[name]) {
        const tall = Math.min(20, 3 + Math.log2(1 + count) * 4);
        pen.fillRect(px, height - 5 - tall, 1.5, tall);
      }
    }
    pen.fillStyle = colour("--fault");
    this.run.records.forEach((record, i) => {
      if (record.kind === "fault") pen.fillRect(this.overviewX(this.positions[i]) - 1, 1, 2, height - 3);
    });
    if (this.span > (this.whole.u1 - this.whole.u0) * 0.999) return;
    const a = this.overviewX(this.view.u0), b = this.overviewX(this.view.u1);
    pen.fillStyle = colour("--veil");
    pen.fillRect(this.left, 0, Math.max(0, a - this.left), height);
    pen.fillRect(b, 0, Math.max(0, width - b), height);
    pen.strokeStyle = colour("--soft");
    pen.strokeRect(a + 0.5, 0.5, Math.max(4, b - a) - 1, height - 1);
  }

  // The records under the mouse, the nearest first; of what lies upon each other, that drawn last, which is seen.
  under(px, py) {
    const near = this.drawn
      .map((item, order) => ({ item, order, away: Math.hypot(item.x - px, item.y - py) }))
      .filter((found) => found.away <= 11)
      .sort((a, b) => a.away - b.away || b.order - a.order);
    const touching = near.filter((found) => found.away <= near[0].away + 5);
    return [...new Set(touching.flatMap((found) => found.item.members))];
  }
}

// Waits that follow each other are drawn as one.
function stretchesOf(pieces) {
  const found = [];
  for (const piece of pieces) {
    const last = found[found.length - 1];
    if (last && last.idle && piece.idle) Object.assign(last, { to: piece.to, u1: piece.u1 });
    else found.push({ ...piece });
  }
  return found;
}

// Below a lane with faults there is room for their rules.
function placeLanes(run) {
  const faulty = new Set(run.records.filter((record) => record.kind === "fault").map((record) => record.lane));
  let top = AXIS;
  return run.lanes.map((lane, n) => {
    const [base, step] = LANE[lane.kind], isWorker = lane.kind === "worker";
    const tall = base + (lane.tracks - 1) * step + (isWorker || faulty.has(n) ? 20 : 4);
    const placed = { top, bottom: top + Math.max(isWorker ? 46 : base, tall), first: base / 2 + 2, step };
    top = placed.bottom + 4;
    return placed;
  });
}
