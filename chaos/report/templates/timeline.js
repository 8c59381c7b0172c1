// Moving about the timeline: zoom, drag, wheel, overview, and what lies under the mouse.

const GLIDE_MS = 180;

function makeTimeline(box, overview, run, page) {
  const drawing = new Drawing(box, overview, run, page.recordsOf);
  const { chart, whole, positions } = drawing;
  let gliding = 0;

  function show(u0, u1) {
    const least = drawing.scale.length / 20000 || 1e-6;
    const span = Math.min(whole.u1 - whole.u0, Math.max(least, u1 - u0));
    const from = Math.min(Math.max(u0, whole.u0), whole.u1 - span);
    drawing.view = { u0: from, u1: from + span };
    drawing.redraw();
  }

  function glide(u0, u1) {
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      show(u0, u1);
      return;
    }
    const from = { ...drawing.view }, start = performance.now(), mine = ++gliding;
    const step = (now) => {
      if (mine !== gliding) return;
      const part = Math.min(1, Math.max(0, (now - start) / GLIDE_MS)), eased = 1 - (1 - part) ** 3;
      show(from.u0 + (u0 - from.u0) * eased, from.u1 + (u1 - from.u1) * eased);
      if (part < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  // At once, as the hand moves; whatever glides ends there.
  function follow(u0, u1) {
    gliding++;
    show(u0, u1);
  }

  function zoomed(factor, centre) {
    const { u0, u1 } = drawing.view;
    return [centre - (centre - u0) * factor, centre + (u1 - centre) * factor];
  }

  function moved(by, { u0, u1 } = drawing.view) {
    return [u0 + by, u1 + by];
  }

  // Pixels as a distance.
  function distance(px) {
    return (px / (drawing.right - drawing.left)) * drawing.span;
  }

  function pointAt(event) {
    const edges = chart.getBoundingClientRect();
    return [event.clientX - edges.left, event.clientY - edges.top];
  }

  let drag = null;
  chart.addEventListener("pointerdown", (event) => {
    if (event.button === 0) drag = { px: pointAt(event)[0], view: { ...drawing.view }, moved: false };
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const away = pointAt(event)[0] - drag.px;
    if (Math.abs(away) > 4 && !drag.moved) {
      drag.moved = true;
      page.leave();
      box.classList.add("dragging");
    }
    if (drag.moved) follow(...moved(-distance(away), drag.view));
  });
  window.addEventListener("pointerup", (event) => {
    const was = drag;
    drag = null;
    box.classList.remove("dragging");
    if (!was || was.moved || !chart.contains(event.target)) return;
    page.pin(drawing.under(...pointAt(event))[0] ?? -1);
  });
  window.addEventListener("pointercancel", () => { drag = null; });
  chart.addEventListener("pointermove", (event) => {
    if (drag && drag.moved) return;
    const found = drawing.under(...pointAt(event));
    box.classList.toggle("over", found.length > 0);
    if (found.length) page.hover(found, event.clientX, event.clientY);
    else page.leave();
  });
  chart.addEventListener("pointerleave", () => page.leave());
  chart.addEventListener("dblclick", (event) => glide(...zoomed(0.35, drawing.u(pointAt(event)[0]))));
  chart.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const factor = Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.008);
      follow(...zoomed(factor, drawing.u(pointAt(event)[0])));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      follow(...moved(distance(event.deltaX || event.deltaY)));
    }
  }, { passive: false });

  let scrubbing = false;
  const scrub = (event) => {
    const px = event.clientX - overview.getBoundingClientRect().left, begin = drawing.overviewX(whole.u0);
    const part = (px - begin) / (drawing.overviewX(whole.u1) - begin);
    const at = whole.u0 + part * (whole.u1 - whole.u0), half = drawing.span / 2;
    follow(at - half, at + half);
  };
  overview.addEventListener("pointerdown", (event) => {
    scrubbing = true;
    overview.setPointerCapture(event.pointerId);
    scrub(event);
  });
  overview.addEventListener("pointermove", (event) => { if (scrubbing) scrub(event); });
  overview.addEventListener("pointerup", () => { scrubbing = false; });
  new ResizeObserver(() => drawing.redraw()).observe(box);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawing.redraw());

  return {
    glyphs: drawing.glyphs,
    draw: () => drawing.draw(),
    // Change what is to be seen: matches and groups of the filter, hidden kinds, pinned, hovered, threads.
    set(changes) {
      Object.assign(drawing.state, changes);
      drawing.redraw();
    },
    reveal(i) {
      const { u0, u1 } = drawing.view, margin = drawing.span * 0.06, at = positions[i];
      if (at < u0 + margin || at > u1 - margin) glide(at - drawing.span / 2, at + drawing.span / 2);
    },
    // Around what is pinned, if it is in view.
    zoom(factor) {
      const { u0, u1 } = drawing.view, pinned = drawing.state.pinned, at = pinned < 0 ? u0 : positions[pinned];
      glide(...zoomed(factor, at > u0 && at < u1 ? at : (u0 + u1) / 2));
    },
    pan: (part) => glide(...moved(part * drawing.span)),
    all: () => glide(whole.u0, whole.u1),
  };
}
