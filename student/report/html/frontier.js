"use strict";
// The frontier: reward against KL to the reference, a path for every run. Up and to the left is better.

class Frontier {
  constructor(host, across, up, runs, look, height) {
    Object.assign(this, { host, across, up, runs, look, height, plot: null });
    this.told = document.createElement("p");
    this.told.className = "told";
    this.area = document.createElement("div");
    host.append(this.area, this.told);
  }

  /** [[x, y], ...] of a run: both figures at the same logged steps. */
  path(run) {
    const x = run.figures[this.across.name], y = run.figures[this.up.name];
    if (!x || !y) return [];
    const xs = smoothed(x.mean, this.look.smooth), ys = smoothed(y.mean, this.look.smooth);
    const at = new Map(run.axes[y.axis].map((step, i) => [step, ys[i]]));
    return run.axes[x.axis].flatMap((step, i) => {
      const value = at.get(step);
      return xs[i] === null || value === null || value === undefined ? [] : [[xs[i], value, step]];
    });
  }

  draw() {
    this.paths = this.runs.map((run) => this.path(run));
    const all = this.paths.flat();
    const range = (which) => {
      let low = Infinity, high = -Infinity;
      for (const point of all) {
        low = Math.min(low, point[which]);
        high = Math.max(high, point[which]);
      }
      const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      return [low - room, high + room];
    };
    const [x, y] = axesOf(this.up);
    const values = (u, ticks) => ticks.map((v) => numberText(this.across, v));
    const options = {
      width: this.area.clientWidth || 320,
      height: this.height,
      padding: [10, 14, 0, 0],
      legend: { show: false },
      scales: { x: { time: false, range: range(0) }, y: { range: range(1) } },
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      axes: [{ ...x, label: this.across.heading, values }, { ...y, label: this.up.heading }],
      series: [{}, { points: { show: false } }],
      hooks: { draw: [(u) => this.paint(u)], setCursor: [(u) => this.readOut(u)] },
    };
    this.area.replaceChildren();
    this.plot = new uPlot(options, [range(0), [null, null]], this.area);
  }

  paint(u) {
    const context = u.ctx, ratio = devicePixelRatio || 1;
    context.save();
    this.paths.forEach((path, number) => {
      if (!this.look.shown[number] || path.length === 0) return;
      const { colour, dash } = lineOf(number);
      const places = path.map(([x, y]) => [u.valToPos(x, "x", true), u.valToPos(y, "y", true)]);
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = 2 * ratio;
      context.setLineDash(dash.map((length) => length * ratio));
      context.beginPath();
      places.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
      context.beginPath();
      context.arc(...places[places.length - 1], 4 * ratio, 0, 2 * Math.PI);
      context.fill();
    });
    context.restore();
  }

  /** The point that is nearest to the cursor, in words. */
  readOut(u) {
    const { left, top } = u.cursor;
    if (left < 0) {
      this.told.textContent = "";
      return;
    }
    let best = null, nearest = Infinity;
    this.paths.forEach((path, number) => {
      if (!this.look.shown[number]) return;
      for (const point of path) {
        const away = Math.hypot(u.valToPos(point[0], "x") - left, u.valToPos(point[1], "y") - top);
        if (away < nearest) [nearest, best] = [away, [number, ...point]];
      }
    });
    if (best === null) return;
    const [number, x, y, step] = best;
    const told = `${this.across.label} ${numberText(this.across, x)}, ${this.up.label} ${numberText(this.up, y)}`;
    this.told.textContent = `run ${number + 1}, step ${step.toLocaleString("en-US")}: ${told}`;
  }

  smooth() {
    this.draw();
  }

  toggle() {
    this.plot.redraw(false);
  }

  resize() {
    if (this.plot) this.plot.setSize({ width: this.area.clientWidth || 320, height: this.height });
  }
}
