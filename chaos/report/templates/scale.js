// Time as it is drawn. What happens lies within milliseconds and waits take a second, so every wait longer than a
// threshold gets the width of that threshold. Positions ("u") are milliseconds without the cut parts.

const CUTS_MAX = 64;

function makeScale(times, end) {
  const moments = [...new Set([0, ...times, end])].sort((a, b) => a - b);
  const threshold = idleThreshold(moments);
  const pieces = [];
  let u = 0;
  for (let i = 1; i < moments.length; i++) {
    const from = moments[i - 1], to = moments[i], idle = to - from > threshold;
    const width = idle ? threshold : to - from;
    const last = pieces[pieces.length - 1];
    if (last && !idle && !last.idle) {
      last.to = to;
      last.u1 = u + width;
    } else {
      pieces.push({ from, to, u0: u, u1: u + width, idle });
    }
    u += width;
  }
  if (!pieces.length) {
    pieces.push({ from: 0, to: 1, u0: 0, u1: 1, idle: false });
    u = 1;
  }

  function pieceAt(value, low, high) {
    let first = 0, last = pieces.length - 1;
    while (first < last) {
      const middle = (first + last) >> 1;
      if (value > pieces[middle][high]) first = middle + 1;
      else last = middle;
    }
    const piece = pieces[first];
    const part = (value - piece[low]) / (piece[high] - piece[low] || 1);
    return [piece, Math.min(1, Math.max(0, part))];
  }

  return {
    pieces,
    length: u,
    toU(t) {
      const [piece, part] = pieceAt(t, "from", "to");
      return piece.u0 + part * (piece.u1 - piece.u0);
    },
    toTime(at) {
      const [piece, part] = pieceAt(at, "u0", "u1");
      return piece.from + part * (piece.to - piece.from);
    },
  };
}

// The shortest threshold that cuts no more than so many waits, and with which these take no more room than the rest.
function idleThreshold(moments) {
  const gaps = [];
  for (let i = 1; i < moments.length; i++) gaps.push(moments[i] - moments[i - 1]);
  gaps.sort((a, b) => a - b);
  let busy = 0;
  for (let i = 0; i < gaps.length; i++) {
    const cut = gaps.length - 1 - i;
    busy += gaps[i];
    if (cut <= CUTS_MAX && cut * gaps[i] <= busy) return gaps[i];
  }
  return 1;
}

// Round times for ticks, at least `room` pixels apart.
function ticksOf(from, to, pixels, room) {
  const span = to - from;
  if (!(span > 0) || pixels < room * 0.6) return [];
  const raw = (span * room) / pixels;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let n = Math.ceil(from / step); n * step <= to; n++) found.push({ t: n * step, step });
  return found;
}

function tickText(t, step) {
  const digits = Math.max(0, Math.min(4, -Math.floor(Math.log10(step) + 1e-9)));
  return t.toFixed(digits);
}

function durationText(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 10000 ? 0 : 1)} s`;
  if (ms >= 10) return `${ms.toFixed(0)} ms`;
  if (ms >= 0.1) return `${ms.toFixed(1)} ms`;
  return `${(ms * 1000).toFixed(0)} µs`;
}
